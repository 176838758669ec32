"""A new file that others see when it is whole, or never; private, for it holds an engine's memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cria.errors import CheckpointExists, CriaError, NoSpace, NotWritable

MEMORY_FILE_SYSTEMS = (Path("/dev/shm"),)


class StagedFile:
    """`file` is written beside `target` under another name, and `publish` gives it its own."""

    def __init__(self, target: Path) -> None:
        """Raises CheckpointExists, NotWritable or NoSpace."""
        self.target = target
        if os.path.lexists(target):
            raise self._exists()
        self._path = target.with_name(f".{target.name}.{os.urandom(4).hex()}.partial")
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise writing_failed(error, target) from error
        self.file: IO[bytes] = os.fdopen(descriptor, "wb", buffering=0)

    def publish(self) -> None:
        """A link, because a rename would replace what somebody else has put there meanwhile."""
        try:
            os.fsync(self.file.fileno())
            self.file.close()
            os.link(self._path, self.target)
            self._path.unlink()
        except FileExistsError as error:
            raise self._exists() from error
        except OSError as error:
            raise writing_failed(error, self.target) from error

    def discard(self) -> None:
        """Remove what was not published."""
        self.file.close()
        self._path.unlink(missing_ok=True)

    def _exists(self) -> CheckpointExists:
        return CheckpointExists(
            f"{self.target} exists already",
            remedy=f"choose another name, or remove it: rm {self.target}",
        )


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside `path`, readable for its owner only, and rename it to `path`. Raises OSError."""
    staged = path.with_name(f".{path.name}.{os.urandom(4).hex()}.partial")
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise


def copy_sparse(source: int, target: int) -> int:
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


def writing_failed(error: OSError, place: object) -> CriaError:
    """What an OSError means that came while writing `place`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"the disk is full: {place} could not be written", details=error.strerror)
    return NotWritable(f"{place} cannot be written", details=error.strerror)
