"""Write into the memory of another process (process_vm_writev(2))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

_MOST_VECTORS = 1024  # IOV_MAX


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def write(pid: int, content: bytes, places: Sequence[tuple[int, int]]) -> None:
    """Put `content` at `places` in the memory of `pid`: address and size of each, one after the other.

    The memory must be mapped and writable there. Raises OSError, also when not all could be written.
    """
    base = ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value or 0
    for begin in range(0, len(places), _MOST_VECTORS):
        some = places[begin : begin + _MOST_VECTORS]
        total = sum(size for _, size in some)
        ours = _Vector(base, total)
        theirs = (_Vector * len(some))(*(_Vector(*place) for place in some))
        written = _libc().process_vm_writev(pid, ctypes.byref(ours), 1, theirs, len(some), 0)
        if written < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        if written != total:
            raise OSError(0, f"{written} of {total} bytes were written")
        base += total


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_writev.restype = ctypes.c_ssize_t
    libc.process_vm_writev.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    return libc
