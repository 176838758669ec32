"""Read and replace a node's files below the directory where the node is mounted. No symbolic link is followed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from cria.errors import NotWritable


class FileChange(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a file before and after a change; None where there is no file. `path` is as the node sees it."""

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
    """Return the content of a file, None where there is none. Raises NotWritable where `path` has a symbolic link."""
    try:
        with _open_directory(root, path.parent) as directory, _explain_errors(root, path):
            descriptor = os.open(
                path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
            with open(descriptor) as file:  # noqa: PTH123 - a descriptor
                return file.read()
    except FileNotFoundError:
        return None


def missing_directories(root: Path, directory: Path) -> tuple[Path, ...]:
    """Return which of `directory` and its parents do not exist, the outermost first."""
    paths = reversed([directory, *directory.parents])
    return tuple(path for path in paths if not os.path.lexists(_below(root, path)))


def apply(root: Path, changes: Iterable[FileChange], new_directories: tuple[Path, ...]) -> None:
    """Make the directories, then the changes in their order; all of it or nothing. Raises NotWritable."""
    done: list[FileChange] = []
    try:
        for path in new_directories:
            with _explain_errors(root, path), _open_directory(root, path.parent) as parent:
                os.mkdir(path.name, 0o755, dir_fd=parent)
        for change in changes:
            _apply_one(root, change)
            done.append(change)
    except BaseException:
        for change in reversed(done):
            _apply_one(root, change.inverse)
        remove_directories(root, new_directories)
        raise


def remove_directories(root: Path, directories: Iterable[Path]) -> None:
    """Remove directories, the innermost first. A directory that is not empty stays."""
    for path in sorted(directories, reverse=True):
        with suppress(OSError, NotWritable), _open_directory(root, path.parent) as parent:
            os.rmdir(path.name, dir_fd=parent)


def remove_bytecode(root: Path, directory: Path, modules: Iterable[str]) -> None:
    """Remove what Python has compiled of `modules`, named without their suffix, in `directory`, and nothing else."""
    cache = directory / "__pycache__"
    with suppress(OSError, NotWritable), _open_directory(root, cache) as opened:
        for name in os.listdir(opened):  # noqa: PTH208 - a descriptor
            if name.split(".")[0] in modules and name.endswith(".pyc"):
                os.unlink(name, dir_fd=opened)
    remove_directories(root, [cache])


def _apply_one(root: Path, change: FileChange) -> None:
    parent = change.path.parent
    with _explain_errors(root, change.path), _open_directory(root, parent) as directory:
        if change.after is None:
            os.unlink(change.path.name, dir_fd=directory)
        else:
            _replace(directory, change.path.name, change.after.encode(), change.executable)


def _replace(directory: int, name: str, content: bytes, executable: bool) -> None:
    """Replace a file by renaming another onto it, so that a reader never sees a half. Owner and mode stay."""
    partial = f".{name}.cria-partial"
    with suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(partial, flags, 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            file.flush()
            _copy_owner_and_mode(directory, name, descriptor, executable)
            os.fsync(descriptor)
        os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(partial, dir_fd=directory)
        raise


def _copy_owner_and_mode(directory: int, name: str, descriptor: int, executable: bool) -> None:
    try:
        old = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        os.fchmod(descriptor, 0o755 if executable else 0o644)
        return
    os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o7777)


@contextmanager
def _open_directory(root: Path, path: Path) -> Iterator[int]:
    """Open a directory of the node, one component after the other, and yield its descriptor."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for depth, name in enumerate(path.parts[1:], start=2):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            with _explain_errors(root, Path(*path.parts[:depth])):
                child = os.open(name, flags, dir_fd=directory)
            os.close(directory)
            directory = child
        yield directory
    finally:
        os.close(directory)


@contextmanager
def _explain_errors(root: Path, path: Path) -> Iterator[None]:
    """Raise NotWritable with the path for an OSError, except where something does not exist."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        full = _below(root, path)
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and full.is_symlink():
            raise NotWritable(
                f"{full} is a symbolic link",
                details=f"it leads to {full.readlink()}: who can change the link could choose which file is written",
                remedy="name the path that it leads to, with --directory or --conf",
            ) from error
        raise NotWritable(f"{full} cannot be written", details=error.strerror) from error


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
