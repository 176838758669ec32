"""Where the bytes of a pages file come from: the file itself, or any store that reads like it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Protocol

Buffer = bytes | bytearray | memoryview

_libc = ctypes.CDLL(None, use_errno=True)


class Pages(Protocol):
    """What a page server reads from; `read` may be called from several threads."""

    def read(self, offset: int, size: int) -> Buffer:
        """These bytes of the pages file, as they were before any compression."""

    def expect(self, offset: int, size: int) -> None:
        """A hint that these bytes are wanted soon."""


class PagesFile:
    """A plain pages file, mapped: the kernel copies straight from the page cache.

    It stays readable when the checkpoint is removed, until this process ends.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            # Private and writable only so that ctypes tells its address; nobody writes.
            self._map = memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY))
        finally:
            os.close(descriptor)

    def read(self, offset: int, size: int) -> memoryview:
        return self._map[offset : offset + size]

    def expect(self, offset: int, size: int) -> None:
        start = offset - offset % mmap.PAGESIZE
        mapped = self._map.obj
        assert isinstance(mapped, mmap.mmap)
        mapped.madvise(mmap.MADV_WILLNEED, start, min(size + offset - start, len(mapped) - start))


def address_of(buffer: Buffer) -> int:
    """Where a buffer lies in this process's memory; it must be kept alive meanwhile."""
    if isinstance(buffer, bytes):
        return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def is_zero(address: int, size: int) -> bool:
    """Whether all of these bytes are zero; stops at the first that is not."""
    return not _libc.memcmp(ctypes.c_void_p(address), _ZEROS, ctypes.c_size_t(size))


_ZEROS = ctypes.create_string_buffer(1 << 20)
