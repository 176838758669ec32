"""Read and replace a node's files, below a root where the node may be mounted; no symbolic link is followed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from cria.errors import NotWritable


class FileChange(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the node that is to be as `after`; None where it is not there. `path` is as the node names it."""

    path: Path
    before: str | None
    after: str | None
    executable: bool = False

    @property
    def action(self) -> str:
        return "create" if self.before is None else "remove" if self.after is None else "change"

    @property
    def inverse(self) -> FileChange:
        return msgspec.structs.replace(self, before=self.after, after=self.before)


def read(root: Path, path: Path) -> str | None:
    """What is in a file; None when it is not there. Raises NotWritable where a link would be followed."""
    try:
        with _directory(root, path.parent) as directory, _explained(root, path):
            handle = os.open(
                path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
            with open(handle) as file:  # noqa: PTH123 - a descriptor
                return file.read()
    except FileNotFoundError:
        return None


def missing_directories(root: Path, directory: Path) -> tuple[Path, ...]:
    """Those of `directory` and its parents that are not there, the outermost first."""
    lines = [directory, *directory.parents]
    return tuple(each for each in reversed(lines) if not os.path.lexists(_below(root, each)))


def apply(root: Path, changes: tuple[FileChange, ...], directories: tuple[Path, ...]) -> None:
    """Make `directories`, then the changes, in this order: all of them or none. Raises NotWritable."""
    done: list[FileChange] = []
    try:
        for each in directories:
            with _explained(root, each), _directory(root, each.parent) as parent:
                os.mkdir(each.name, 0o755, dir_fd=parent)
        for change in changes:
            _make(root, change)
            done.append(change)
    except BaseException:
        for change in reversed(done):
            _make(root, change.inverse)
        remove_directories(root, directories)
        raise


def remove_directories(root: Path, directories: tuple[Path, ...]) -> None:
    """The innermost first; those that hold something else stay."""
    for each in sorted(directories, reverse=True):
        with suppress(OSError, NotWritable), _directory(root, each.parent) as parent:
            os.rmdir(each.name, dir_fd=parent)


def _make(root: Path, change: FileChange) -> None:
    with _explained(root, change.path), _directory(root, change.path.parent) as directory:
        if change.after is None:
            os.unlink(change.path.name, dir_fd=directory)
        else:
            _replace(directory, change.path.name, change.after.encode(), change.executable)


def _replace(directory: int, name: str, content: bytes, executable: bool) -> None:
    """Write beside it and rename, so that whoever reads finds the old or the new; owner and mode stay."""
    partial = f".{name}.cria-partial"
    with suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(partial, flags, 0o600, dir_fd=directory)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            file.flush()
            _like_the_old(directory, name, handle, executable)
            os.fsync(handle)
        os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(partial, dir_fd=directory)
        raise


def _like_the_old(directory: int, name: str, handle: int, executable: bool) -> None:
    try:
        old = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        os.fchmod(handle, 0o755 if executable else 0o644)
        return
    os.fchown(handle, old.st_uid, old.st_gid)
    os.fchmod(handle, old.st_mode & 0o7777)


@contextmanager
def _directory(root: Path, path: Path) -> Iterator[int]:
    """A descriptor of a directory of the node, reached step by step without following a link."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for depth, part in enumerate(path.parts[1:], start=2):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            with _explained(root, Path(*path.parts[:depth])):
                inner = os.open(part, flags, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _explained(root: Path, path: Path) -> Iterator[None]:
    """What the kernel refuses is said with the path. That something is not there is for the caller to judge."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        there = _below(root, path)
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and there.is_symlink():
            raise NotWritable(
                f"{there} is a symbolic link",
                details=f"it leads to {there.readlink()}; whoever may change it would choose what is written",
                remedy="name the real place, with --directory or --conf",
            ) from error
        raise NotWritable(f"{there} cannot be written", details=error.strerror) from error


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
