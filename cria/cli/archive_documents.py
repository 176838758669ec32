"""The JSON documents about a container's checkpoint archive: `cria inspect` and `cria kubernetes remap`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cria.criu import program
from cria.events import Timings
from cria.kubernetes.archive import contents, plan, reader
from cria.kubernetes.archive.contents import Mention, NeededFile
from cria.kubernetes.archive.metadata import Origin
from cria.kubernetes.archive.reader import Sizes
from cria.model.socket import Endpoint

if TYPE_CHECKING:
    from cria.criu.images import files, summary
    from cria.kubernetes.archive.plan import ArchivePlan
    from cria.kubernetes.archive.remap import RemapResult
    from cria.model.socket import PortSocket


class ArchivedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process of an archive; its PIDs are those inside the container."""

    pid: int
    parent: int
    name: str
    threads: int


class ArchivedSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A TCP or UDP socket of an archive. An archive does not record roles, so that `role` is unknown."""

    protocol: str
    state: str
    local: Endpoint
    peer: Endpoint | None
    dual_stack: bool
    role: str
    owner: str


class ArchivedUnixSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A unix socket of an archive; an abstract name begins with @."""

    kind: str
    state: str
    name: str


class InspectedArchive(msgspec.Struct, frozen=True, kw_only=True):
    """`cria inspect ARCHIVE --json`: a container runtime's checkpoint archive. Sizes are in bytes.

    `needs` lists files that the archive does not hold: a restore fails unless the pod's volumes have them.
    """

    schema_version: Literal[1] = 1
    source: Literal["archive"] = "archive"
    target: str
    compression: str
    origin: Origin
    sizes: Sizes
    machine: str
    processes: tuple[ArchivedProcess, ...]
    sockets: tuple[ArchivedSocket, ...]
    unix_sockets: tuple[ArchivedUnixSocket, ...]
    needs: tuple[NeededFile, ...]

    @classmethod
    def of(cls, path: Path) -> InspectedArchive:
        """Read the archive at `path`. Raises a CriaError where it cannot be read."""
        archive = reader.read_archive(path)
        images = archive.criu_images(program.find())
        return cls(
            target=str(path),
            compression=archive.compression,
            origin=archive.origin,
            sizes=archive.sizes,
            machine=next((process.machine for process in images.holders), ""),
            processes=tuple(map(_process, images.holders)),
            sockets=tuple(map(_socket, plan.sockets(images))),
            unix_sockets=tuple(map(_unix_socket, images.unix_sockets())),
            needs=contents.needed_files(archive, images),
        )


class RemapPlanned(msgspec.Struct, frozen=True, kw_only=True):
    """`cria kubernetes remap --dry-run --json`: each old port with its new one, and each socket with a reason.

    `mentions` are places that still name the old ports; a restore does not read them.
    """

    ports: dict[str, int]
    sockets: list[dict[str, Any]]
    unix_names_changed: int
    mentions: tuple[Mention, ...]

    @classmethod
    def of(cls, plan: ArchivePlan) -> RemapPlanned:
        return cls(**_plan_fields(plan))


class RemapDone(msgspec.Struct, frozen=True, kw_only=True):
    """`cria kubernetes remap --json`: the new archive, or the directory of the container image and its digest."""

    archive: str
    digest: str
    ports: dict[str, int]
    sockets: list[dict[str, Any]]
    unix_names_changed: int
    mentions: tuple[Mention, ...]
    needs: tuple[NeededFile, ...]
    timings: Timings

    @classmethod
    def of(cls, remapped: RemapResult) -> RemapDone:
        return cls(
            archive=str(remapped.path),
            digest=remapped.digest,
            needs=remapped.needs,
            timings=remapped.timings,
            **_plan_fields(remapped.plan),
        )


def _plan_fields(plan: ArchivePlan) -> dict[str, Any]:
    ports = plan.ports.to_json()
    return {
        "ports": ports["ports"],
        "sockets": ports["sockets"],
        "unix_names_changed": len(plan.unix_names),
        "mentions": plan.mentions,
    }


def _process(process: summary.Holder) -> ArchivedProcess:
    return ArchivedProcess(
        pid=process.pid, parent=process.parent, name=process.name, threads=process.threads
    )


def _socket(socket: PortSocket) -> ArchivedSocket:
    return ArchivedSocket(
        protocol=socket.protocol,
        state=socket.state,
        local=socket.local,
        peer=socket.peer,
        dual_stack=socket.dual_stack,
        role=socket.role,
        owner=socket.owner,
    )


def _unix_socket(socket: files.UnixSocket) -> ArchivedUnixSocket:
    name = socket.name.decode(errors="replace")
    shown = "@" + name[1:] if name.startswith("\0") else name
    return ArchivedUnixSocket(kind=socket.kind, state=socket.state, name=shown)
