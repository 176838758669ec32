"""Copy files as sparse as they are: vLLM's shared rings are hundreds of megabytes of holes."""

from __future__ import annotations

import errno
import os


def copy(source: int, target: int) -> int:
    """Copy the data extents from one file descriptor to another and keep the size.

    Returns the bytes copied, which for a sparse file is far less than its size.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    copied = 0
    offset = 0
    while offset < size:
        try:
            begin = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        end = os.lseek(source, begin, os.SEEK_HOLE)
        copied += _copy_extent(source, target, begin, end)
        offset = end
    return copied


def _copy_extent(source: int, target: int, begin: int, end: int) -> int:
    """copy_file_range refuses some pairs of file systems (EXDEV); sendfile serves all."""
    os.lseek(target, begin, os.SEEK_SET)
    offset = begin
    while offset < end:
        sent = os.sendfile(target, source, offset, end - offset)
        if sent == 0:
            break
        offset += sent
    return offset - begin
