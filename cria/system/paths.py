"""Paths in directories that somebody else controls: reached by descriptors, through no link of a stranger.

cria runs as root and opens, creates and unlinks files by paths that an engine's user chose. Between a
look at such a path and its use the user may put a link in the place of a directory. So a path is walked
once, component by component, and everything is then done relative to the directory that was reached.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_MOST_LINKS = 40  # as many as the kernel follows (path_resolution(7))
_DIRECTORY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Place:
    """A name in a directory that was reached safely, and the path that led there."""

    def __init__(self, directory: int, name: str, path: str) -> None:
        self.directory = directory
        self.name = name
        self.path = path

    def lstat(self) -> os.stat_result:
        return os.lstat(self.name, dir_fd=self.directory)

    def exists(self) -> bool:
        with suppress(FileNotFoundError):
            self.lstat()
            return True
        return False

    def open(self, flags: int, mode: int = 0o600) -> int:
        """Open the name itself, never what a link at it leads to."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.name, flags, mode, dir_fd=self.directory)

    def open_regular(self) -> tuple[int, os.stat_result]:
        """Open a regular file to read. Raises OSError (EINVAL) for anything else; a FIFO does not block."""
        descriptor = self.open(os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        return descriptor, status

    def unlink(self) -> None:
        """Remove the name, if it exists."""
        with suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self.directory)

    def unlink_if(self, device: int, inode: int) -> bool:
        """Remove the name where it is that of the given file; say whether it was."""
        with suppress(FileNotFoundError):
            status = self.lstat()
            if (status.st_dev, status.st_ino) == (device, inode):
                self.unlink()
                return True
        return False

    def may_create(self, uid: int) -> bool:
        """Say whether the user `uid` could create the name: root must not do for a user what they may not."""
        status = os.fstat(self.directory)
        return uid in (0, status.st_uid) or bool(status.st_mode & stat.S_IWOTH)


@contextmanager
def place_of(
    path: str | Path,
    *,
    root: Path = Path("/"),
    trusted: Collection[int] = (),
    create_for: tuple[int, int] | None = None,
) -> Iterator[Place]:
    """Walk to the directory of `path` below `root` and yield the place of its last component.

    Links on the way are followed within `root` where root, this user or a uid of `trusted` owns them.
    With `create_for` missing directories are made, mode 0700, for that uid and gid, where that user could
    have made them. Raises FileNotFoundError, and PermissionError for a link of somebody else.
    """
    owners = {0, os.geteuid(), *trusted}
    with ExitStack() as opened:

        def descend(parent: int, name: str) -> int:
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
            opened.callback(os.close, descriptor)
            return descriptor

        top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, top)
        way, names, links = [top], list(reversed(Path(path).parts[1:])), 0
        while len(names) > 1:
            name = names.pop()
            if name == "..":
                way = way[:-1] or [top]
                continue
            try:
                here = descend(way[-1], name)
            except FileNotFoundError:
                if create_for is None:
                    raise
                _make(Place(way[-1], name, str(path)), create_for)
                here = descend(way[-1], name)
            status = os.fstat(here)
            if not stat.S_ISLNK(status.st_mode):
                way.append(here)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            if status.st_uid not in owners:
                raise PermissionError(
                    errno.EPERM, f"uid {status.st_uid} owns a link on the way", str(path)
                )
            target = Path(os.readlink("", dir_fd=here))
            names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            way = [top] if target.is_absolute() else way
        yield Place(way[-1], names[0], str(path))


def _make(place: Place, owner: tuple[int, int]) -> None:
    if not place.may_create(owner[0]):
        raise PermissionError(
            errno.EACCES, f"uid {owner[0]} could not create a directory on the way", place.path
        )
    os.mkdir(place.name, 0o700, dir_fd=place.directory)
    descriptor = place.open(os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fchown(descriptor, *owner)
    finally:
        os.close(descriptor)
