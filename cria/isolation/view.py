"""What a clone sees in its own version of the host's files, read from the images of its checkpoint."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cria.criu.images.directory import CriuImages
from cria.criu.images.files import RegularFile, UnixSocket
from cria.model.manifest import Manifest
from cria.system.files import MEMORY_FILE_SYSTEMS


class Log(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A file to which the engine only appends, and its permission bits at the dump."""

    path: Path
    mode: int


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A clone's private view.

    `copy_on_write` are directories with socket paths: CRIU unlinks each path and binds it again, which
    would take it from the engine that has it. `logs` are pairs of the clone's own log and the path at
    which the engine appends to it. `abstract` are new names for abstract unix sockets, by file ID: such
    names belong to the network namespace.
    """

    copy_on_write: tuple[Path, ...]
    logs: tuple[tuple[Log, Path], ...]
    abstract: dict[int, bytes]

    @property
    def binds(self) -> tuple[tuple[Path, Path], ...]:
        return tuple((own.path, path) for own, path in self.logs)


def prepare_view(images: CriuImages, manifest: Manifest, tag: str, *, shares_network: bool) -> View:
    """Return the view of one clone, and make the directories and logs that this host lacks."""
    saved = (name for file in manifest.saved_files for name in file.every_name)
    view = view_of(
        images.regular_files(), images.unix_sockets(), saved, tag, shares_network=shares_network
    )
    make_directories(view.copy_on_write, manifest.inventory.root.uid)
    make_logs(Log(path=path, mode=own.mode) for own, path in view.logs)
    return view


def view_of(
    opened: Iterable[RegularFile],
    sockets: Iterable[UnixSocket],
    saved: Iterable[str],
    tag: str,
    *,
    shares_network: bool,
) -> View:
    """Return the view of one clone. `tag` tells its log and its abstract names from those of others.

    `saved` are the paths of files that the restore puts back.
    """
    put_back = {Path(path) for path in saved}
    bound = [socket for socket in sockets if socket.name]
    directories = {Path(os.fsdecode(s.name)).parent for s in bound if s.name.startswith(b"/")}
    directories |= {path.parent for path in put_back if not _in_memory(path)}
    abstract = {
        socket.file_id: socket.name + f".cria-{tag}".encode()
        for socket in bound
        if shares_network and socket.name.startswith(b"\0")
    }
    logs = (log for log in logs_of(opened) if log.path not in put_back)
    return View(
        copy_on_write=tuple(sorted(_outermost(directories))),
        logs=tuple((Log(path=Path(f"{log.path}.{tag}"), mode=log.mode), log.path) for log in logs),
        abstract=abstract,
    )


def logs_of(opened: Iterable[RegularFile]) -> list[Log]:
    """Return the files to which the engine only appends: CRIU does not compare their sizes."""
    logs = {
        Path(file.path): stat.S_IMODE(file.mode)
        for file in opened
        if file.flags & os.O_APPEND and file.flags & (os.O_WRONLY | os.O_RDWR)
    }
    return sorted(Log(path=path, mode=mode) for path, mode in logs.items() if not _in_memory(path))


def make_logs(logs: Iterable[Log]) -> None:
    """Create logs that do not exist, each with the mode that CRIU recorded.

    CRIU refuses a file whose mode differs (validate_file in criu/files-reg.c).
    """
    for log in logs:
        if log.path.exists():
            continue
        log.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(log.path, flags, 0o600)
        try:
            os.fchmod(descriptor, log.mode)
        finally:
            os.close(descriptor)


def make_directories(directories: Iterable[Path], uid: int) -> None:
    """Create directories of the engine's user that do not exist."""
    for directory in directories:
        if directory.exists():
            continue
        directory.mkdir(parents=True, mode=0o700)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchown(descriptor, uid, -1)
        finally:
            os.close(descriptor)


def _in_memory(path: Path) -> bool:
    return any(root in path.parents for root in MEMORY_FILE_SYSTEMS)


def _outermost(directories: set[Path]) -> set[Path]:
    return {d for d in directories if not any(parent in directories for parent in d.parents)}
