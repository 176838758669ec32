"""What of the host's files a clone must see in its own version, read from the images of its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cria.images.files import RegularFile, UnixSocket
from cria.storage.carry import MEMORY_FILE_SYSTEMS


class View(msgspec.Struct, frozen=True, kw_only=True):
    """`copy_on_write`: directories with socket paths that CRIU would unlink and bind anew, taking them
    from whoever has them. `binds`: the clone's own log and the path at which the engine appends to it.
    `abstract`: new names for abstract unix sockets, by file ID; those belong to the network namespace.
    """

    copy_on_write: tuple[Path, ...]
    binds: tuple[tuple[Path, Path], ...]
    abstract: dict[int, bytes]


def view_for(
    files: Iterable[RegularFile], sockets: Iterable[UnixSocket], tag: str, *, shares_network: bool
) -> View:
    """The view for one clone; `tag` tells its log and its abstract names from those of the others."""
    bound = [socket for socket in sockets if socket.name]
    directories = {Path(os.fsdecode(s.name)).parent for s in bound if s.name.startswith(b"/")}
    abstract = {
        socket.file_id: socket.name + f".cria-{tag}".encode()
        for socket in bound
        if shares_network and socket.name.startswith(b"\0")
    }
    return View(
        copy_on_write=tuple(sorted(_outermost(directories))),
        binds=tuple((Path(f"{log}.{tag}"), log) for log in logs(files)),
        abstract=abstract,
    )


def logs(files: Iterable[RegularFile]) -> list[Path]:
    """The files to which the engine only appends: CRIU does not check their size."""
    paths = {
        Path(file.path)
        for file in files
        if file.flags & os.O_APPEND and file.flags & (os.O_WRONLY | os.O_RDWR)
    }
    return sorted(p for p in paths if not any(root in p.parents for root in MEMORY_FILE_SYSTEMS))


def make_sure_of(logs: Iterable[Path]) -> None:
    """A log that was rotated away is begun anew, readable by its owner only."""
    for log in logs:
        if not log.exists():
            log.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _outermost(directories: set[Path]) -> set[Path]:
    return {d for d in directories if not any(parent in directories for parent in d.parents)}
