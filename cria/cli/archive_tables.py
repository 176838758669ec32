"""What `cria inspect` and `cria kubernetes remap` show of an archive: tables and JSON documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cria.cli.output import middle, size, table
from cria.events import Timings
from cria.kubernetes.archive.contents import Mention, NeededFile
from cria.kubernetes.archive.origin import Origin
from cria.kubernetes.archive.reader import Sizes
from cria.model.inventory import Endpoint

if TYPE_CHECKING:
    from cria.criu.images.files import UnixSocket
    from cria.criu.images.summary import Holder
    from cria.kubernetes.archive.plan import ArchivePlan
    from cria.kubernetes.archive.remap import Remapped
    from cria.model.socket import PortSocket

_STATES = {"ESTABLISHED": "ESTAB"}


class ArchivedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process of an archive; PIDs are those inside the container."""

    pid: int
    parent: int
    name: str
    threads: int


class ArchivedSocket(msgspec.Struct, frozen=True, kw_only=True):
    """A TCP or UDP socket of an archive; nobody recorded what it is for, so `role` is unknown."""

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
    """`cria inspect ARCHIVE --json`: a container runtime's checkpoint archive. Sizes are bytes.

    `needs` are files that it does not hold: a restore finds them on the pod's volumes, or fails.
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


class RemapPlanned(msgspec.Struct, frozen=True, kw_only=True):
    """`cria kubernetes remap --dry-run --json`: old port to new, every socket with its reason.

    `mentions` are the places that go on naming what moves; no restore reads them.
    """

    ports: dict[str, int]
    sockets: list[dict[str, Any]]
    unix_names_changed: int
    mentions: tuple[Mention, ...]

    @classmethod
    def of(cls, plan: ArchivePlan) -> RemapPlanned:
        return cls(**_planned(plan))


class RemapDone(msgspec.Struct, frozen=True, kw_only=True):
    """`cria kubernetes remap --json`: the new archive, or the image's directory and its digest."""

    archive: str
    digest: str
    ports: dict[str, int]
    sockets: list[dict[str, Any]]
    unix_names_changed: int
    mentions: tuple[Mention, ...]
    needs: tuple[NeededFile, ...]
    timings: Timings

    @classmethod
    def of(cls, done: Remapped) -> RemapDone:
        return cls(
            archive=str(done.path),
            digest=done.digest,
            needs=done.needs,
            timings=done.timings,
            **_planned(done.plan),
        )


def inspected(path: Path) -> InspectedArchive:
    """The document about the archive at `path`. Raises a CriaError."""
    from cria.criu import program
    from cria.kubernetes.archive.contents import needed
    from cria.kubernetes.archive.plan import sockets, unix_sockets
    from cria.kubernetes.archive.reader import open_archive

    archive, criu = open_archive(path), program.find()
    holders = archive.holders(criu)
    return InspectedArchive(
        target=str(path),
        compression=archive.compression,
        origin=archive.origin,
        sizes=archive.sizes,
        machine=next((each.machine for each in holders), ""),
        processes=tuple(map(_process, holders)),
        sockets=tuple(map(_socket, sockets(archive, criu))),
        unix_sockets=tuple(map(_unix, unix_sockets(archive, criu))),
        needs=needed(archive, criu),
    )


def tables(found: InspectedArchive, *, unix: bool) -> str:
    """The document as tables of 100 columns."""
    parts = [summary(found), processes(found), sockets(found)]
    parts += [unix_table(found)] if unix else []
    return "\n\n".join([*parts, needs(found.needs)] if found.needs else parts)


def needs(files: tuple[NeededFile, ...]) -> str:
    """The files that a restore looks for on the pod's volumes."""
    rows = [("?" if each.linked else size(each.size_bytes), each.path) for each in files]
    return table(("size", "needed on the pod's volumes"), rows)


def summary(found: InspectedArchive) -> str:
    """What the archive is, in a few lines."""
    origin, sizes = found.origin, found.sizes
    pod = f" of pod {origin.namespace}/{origin.pod}" if origin.pod else ""
    packed = (
        ""
        if found.compression == "none"
        else f", {size(sizes.unpacked)} without {found.compression}"
    )
    rows = [
        ("archive", f"{found.target}"),
        ("container", f"{origin.container or origin.container_id}{pod}"),
        ("runtime", " with ".join(filter(None, (origin.runtime, origin.oci_runtime)))),
        ("image", origin.image or "?"),
        ("taken", f"{origin.checkpointed or '?'}{f' on {found.machine}' if found.machine else ''}"),
        ("size", f"{size(sizes.archive)}{packed}"),
        (
            "holds",
            f"{size(sizes.pages)} memory, {size(sizes.images)} other images, "
            f"{size(sizes.rootfs)} changed files",
        ),
    ]
    return "\n".join(f"{name:<13} {value}" for name, value in rows)


def processes(found: InspectedArchive) -> str:
    """Its processes, each with the PID that it has in the container."""
    rows = [
        (str(each.pid), each.name, str(each.threads), str(each.parent)) for each in found.processes
    ]
    return table(("pid", "name", "threads", "parent"), rows)


def sockets(found: InspectedArchive) -> str:
    """Its TCP and UDP sockets."""
    rows = [
        (
            each.protocol,
            _STATES.get(each.state, each.state),
            middle(str(each.local), 24),
            middle(str(each.peer), 24) if each.peer else "-",
            middle(each.owner or "-", 36),
        )
        for each in found.sockets
    ]
    return table(("", "state", "local", "peer", "held by"), rows) if rows else "no sockets"


def unix_table(found: InspectedArchive) -> str:
    """Its unix sockets that have a name."""
    rows = [
        (each.kind, each.state, middle(each.name, 70)) for each in found.unix_sockets if each.name
    ]
    return table(("unix", "state", "name"), rows) if rows else "no unix socket has a name"


def _planned(plan: ArchivePlan) -> dict[str, Any]:
    said = plan.ports.to_json()
    return {
        "ports": said["ports"],
        "sockets": said["sockets"],
        "unix_names_changed": len(plan.unix_names),
        "mentions": plan.mentions,
    }


def _process(holder: Holder) -> ArchivedProcess:
    return ArchivedProcess(
        pid=holder.pid, parent=holder.parent, name=holder.name, threads=holder.threads
    )


def _socket(found: PortSocket) -> ArchivedSocket:
    return ArchivedSocket(
        protocol=found.protocol,
        state=found.state,
        local=found.local,
        peer=found.peer,
        dual_stack=found.dual_stack,
        role=found.role,
        owner=found.owner,
    )


def _unix(found: UnixSocket) -> ArchivedUnixSocket:
    name = found.name.decode(errors="replace")
    shown = "@" + name[1:] if name.startswith("\0") else name
    return ArchivedUnixSocket(kind=found.kind, state=found.state, name=shown)
