"""Pass a stream on with one stretch of it replaced, a piece at a time or within the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import IO

import msgspec

from cria.checkpoint.tar_reader import PIECE
from cria.events import OnBytes
from cria.system.compression import Writable

_AT_ONCE = 64 << 20
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


class Patch(msgspec.Struct, frozen=True, kw_only=True):
    """`data` takes the place of the bytes from `begin` to `end`."""

    begin: int
    end: int
    data: bytes


def splice(source: IO[bytes], sink: Writable, patch: Patch | None, moved: OnBytes) -> None:
    """Write all of `source`, patched, to `sink`. Raises EOFError where the patch lies beyond its end."""
    if patch is not None:
        _pass_on(source, sink, patch.begin, moved)
        write(sink, patch.data)
        for _ in _pieces(source, patch.end - patch.begin):
            pass
        moved(patch.end - patch.begin)
    while piece := source.read(PIECE):
        write(sink, piece)
        moved(len(piece))


def splice_files(source: IO[bytes], sink: IO[bytes], patch: Patch | None, moved: OnBytes) -> None:
    """The same from a file to a file, both unbuffered and at their beginning: no byte is copied twice."""
    size = os.fstat(source.fileno()).st_size
    if patch is not None:
        _copy(source, sink, patch.begin, moved)
        write(sink, patch.data)
        source.seek(patch.end)
        moved(patch.end - patch.begin)
    _copy(source, sink, size - source.tell(), moved)


def write(sink: Writable, data: bytes) -> None:
    """All of `data`: an unbuffered file may take less at a time."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += sink.write(view[done:])  # type: ignore[arg-type]


def _copy(source: IO[bytes], sink: IO[bytes], count: int, moved: OnBytes) -> None:
    while count > 0:
        try:
            done = os.copy_file_range(source.fileno(), sink.fileno(), min(count, _AT_ONCE))
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            _pass_on(source, sink, count, moved)
            return
        if not done:
            raise EOFError("it ends too early")
        count -= done
        moved(done)


def _pass_on(source: IO[bytes], sink: Writable, count: int, moved: OnBytes) -> None:
    for piece in _pieces(source, count):
        write(sink, piece)
        moved(len(piece))


def _pieces(source: IO[bytes], count: int) -> Iterator[bytes]:
    while count:
        piece = source.read(min(PIECE, count))
        if not piece:
            raise EOFError("it ends too early")
        count -= len(piece)
        yield piece
