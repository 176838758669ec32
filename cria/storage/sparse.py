"""Copy files as sparse as they are: vLLM's shared rings are hundreds of megabytes of holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def copy(source: int, target: int) -> int:
    """Copy the data extents from one file descriptor to another and keep the size.

    Returns the bytes copied, which for a sparse file is far less than its size.
    """
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    return sum(
        _copy_extent(source, target, begin, end)
        for begin, end, is_data in extents(source, size)
        if is_data
    )


def extents(descriptor: int, size: int, offset: int = 0) -> Iterator[tuple[int, int, bool]]:
    """The stretches of a file from `offset` to `size`: begin, end, and whether it is data or a hole."""
    while offset < size:
        try:
            begin = min(os.lseek(descriptor, offset, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            begin = size  # only a hole is left
        if begin > offset:
            yield offset, begin, False
        if begin < size:
            end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
            yield begin, end, True
            begin = end
        offset = begin


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
