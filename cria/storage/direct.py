"""Find out whether a file system takes the direct writes that CRIU would make."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

PAGE = 4096


def works(directory: Path) -> bool:
    """Whether a page of the vDSO can be written to `directory` with O_DIRECT.

    CRIU writes every page of a process so, the vDSO's too, and that one is the kernel's own memory:
    virtual disks that cannot reach it answer EIO (seen with a virtio disk on kernel 6.18).
    """
    address = _vdso()
    if address is None:
        return False
    try:
        file = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
        libc.write.restype = ctypes.c_ssize_t
        return bool(libc.write(file, address, PAGE) == PAGE)
    finally:
        os.close(file)


def _vdso() -> int | None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            return int(line.partition("-")[0], 16)
    return None
