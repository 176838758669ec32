"""Copy a stream with one range replaced.

An archive is rewritten so, at offsets, and not as a tar that is unpacked and packed again: what cria does not
understand cannot change, and where it is not compressed the kernel copies the rest.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import IO

import msgspec

from cria.checkpoint.tar_reader import PIECE
from cria.events import OnBytes
from cria.system.compression import Writable

_CALL_BYTES = 64 << 20  # of one copy_file_range(2), so that progress is seen
_UNSUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


class Patch(msgspec.Struct, frozen=True, kw_only=True):
    """`data` replaces the bytes from `begin` to `end`."""

    begin: int
    end: int
    data: bytes


def splice(source: IO[bytes], target: Writable, patch: Patch | None, moved: OnBytes) -> None:
    """Write all of `source`, patched, to `target`. Raises EOFError where the patch lies beyond its end."""
    if patch is not None:
        _copy(source, target, patch.begin, moved)
        write(target, patch.data)
        for _ in _pieces(source, patch.end - patch.begin):
            pass
        moved(patch.end - patch.begin)
    while piece := source.read(PIECE):
        write(target, piece)
        moved(len(piece))


def splice_files(source: IO[bytes], target: IO[bytes], patch: Patch | None, moved: OnBytes) -> None:
    """Write all of the file `source`, patched, to the file `target`, within the kernel where it can.

    Both are unbuffered and at their beginning. Raises EOFError where the patch lies beyond the end.
    """
    size = os.fstat(source.fileno()).st_size
    if patch is not None:
        _copy_in_kernel(source, target, patch.begin, moved)
        write(target, patch.data)
        source.seek(patch.end)
        moved(patch.end - patch.begin)
    _copy_in_kernel(source, target, size - source.tell(), moved)


def write(target: Writable, data: bytes) -> None:
    """Write all of `data`: an unbuffered file may take less at a time."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += target.write(view[done:])  # type: ignore[arg-type]


def _copy_in_kernel(source: IO[bytes], target: IO[bytes], count: int, moved: OnBytes) -> None:
    while count > 0:
        try:
            copied = os.copy_file_range(source.fileno(), target.fileno(), min(count, _CALL_BYTES))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            _copy(source, target, count, moved)
            return
        if not copied:
            raise EOFError("it ends too early")
        count -= copied
        moved(copied)


def _copy(source: IO[bytes], target: Writable, count: int, moved: OnBytes) -> None:
    for piece in _pieces(source, count):
        write(target, piece)
        moved(len(piece))


def _pieces(source: IO[bytes], count: int) -> Iterator[bytes]:
    while count:
        piece = source.read(min(PIECE, count))
        if not piece:
            raise EOFError("it ends too early")
        count -= len(piece)
        yield piece
