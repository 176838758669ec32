"""What of the host's files a clone must see in its own version, read from the images of its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cria.criu.images import CriuImages
from cria.criu.images.files import RegularFile, UnixSocket
from cria.model.manifest import Manifest
from cria.system.files import MEMORY_FILE_SYSTEMS


class View(msgspec.Struct, frozen=True, kw_only=True):
    """`copy_on_write`: directories with socket paths that CRIU would unlink and bind anew, taking them
    from whoever has them. `binds`: the clone's own log and the path at which the engine appends to it.
    `abstract`: new names for abstract unix sockets, by file ID; those belong to the network namespace.
    """

    copy_on_write: tuple[Path, ...]
    binds: tuple[tuple[Path, Path], ...]
    abstract: dict[int, bytes]


def prepared(images: CriuImages, manifest: Manifest, tag: str, *, shares_network: bool) -> View:
    """The view for one clone, after this host was given the directories and logs that it lacks."""
    opened, sockets = images.regular_files(), images.unix_sockets()
    carried = (name for file in manifest.saved_files for name in file.every_name)
    view = view_for(opened, sockets, carried, tag, shares_network=shares_network)
    make_directories(view.copy_on_write, manifest.inventory.root.uid)
    make_sure_of(log for _, log in view.binds)
    return view


def view_for(
    opened: Iterable[RegularFile],
    sockets: Iterable[UnixSocket],
    carried: Iterable[str],
    tag: str,
    *,
    shares_network: bool,
) -> View:
    """The view for one clone; `tag` tells its log and its abstract names from those of the others.

    `carried` are the paths of files that will be put back.
    """
    put_back = {Path(path) for path in carried}
    bound = [socket for socket in sockets if socket.name]
    directories = {Path(os.fsdecode(s.name)).parent for s in bound if s.name.startswith(b"/")}
    directories |= {path.parent for path in put_back if not _in_memory(path)}
    abstract = {
        socket.file_id: socket.name + f".cria-{tag}".encode()
        for socket in bound
        if shares_network and socket.name.startswith(b"\0")
    }
    return View(
        copy_on_write=tuple(sorted(_outermost(directories))),
        binds=tuple((Path(f"{log}.{tag}"), log) for log in logs(opened) if log not in put_back),
        abstract=abstract,
    )


def logs(opened: Iterable[RegularFile]) -> list[Path]:
    """The files to which the engine only appends: CRIU does not check their size."""
    paths = {
        Path(file.path)
        for file in opened
        if file.flags & os.O_APPEND and file.flags & (os.O_WRONLY | os.O_RDWR)
    }
    return sorted(path for path in paths if not _in_memory(path))


def make_sure_of(logs: Iterable[Path]) -> None:
    """A log that was rotated away is begun anew, readable by its owner only."""
    for log in logs:
        if not log.exists():
            log.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def make_directories(wanted: Iterable[Path], uid: int) -> None:
    """Directories of the engine, whose user is `uid`, that this host lacks."""
    for directory in wanted:
        if not directory.exists():
            directory.mkdir(parents=True, mode=0o700)
            os.chown(directory, uid, -1)


def _in_memory(path: Path) -> bool:
    return any(root in path.parents for root in MEMORY_FILE_SYSTEMS)


def _outermost(directories: set[Path]) -> set[Path]:
    return {d for d in directories if not any(parent in directories for parent in d.parents)}
