"""The tables of `cria inspect ARCHIVE`: one function for each part of the document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cria.cli.output import middle, properties, short_state, table
from cria.model.units import size

if TYPE_CHECKING:
    from cria.cli.archive_documents import InspectedArchive
    from cria.kubernetes.archive.contents import NeededFile


def archive(document: InspectedArchive, *, with_unix_sockets: bool) -> str:
    """Return the whole document as tables of at most 100 columns."""
    parts = [summary(document), processes(document), sockets(document)]
    if with_unix_sockets:
        parts.append(unix_sockets(document))
    if document.needs:
        parts.append(needed_files(document.needs))
    return "\n\n".join(parts)


def summary(document: InspectedArchive) -> str:
    """Return what the archive is and what it takes, one fact on a line."""
    origin, sizes = document.origin, document.sizes
    pod = f" of pod {origin.namespace}/{origin.pod}" if origin.pod else ""
    host = f" on {document.machine}" if document.machine else ""
    compression = document.compression
    unpacked = "" if compression == "none" else f", {size(sizes.unpacked)} without {compression}"
    return properties(
        [
            ("archive", document.target),
            ("container", f"{origin.container or origin.container_id}{pod}"),
            ("runtime", " with ".join(filter(None, (origin.runtime, origin.oci_runtime)))),
            ("image", origin.image or "?"),
            ("taken", f"{origin.checkpointed or '?'}{host}"),
            ("size", f"{size(sizes.archive)}{unpacked}"),
            (
                "holds",
                f"{size(sizes.pages)} memory, {size(sizes.images)} other images, "
                f"{size(sizes.rootfs)} changed files",
            ),
        ]
    )


def processes(document: InspectedArchive) -> str:
    """Return the processes with the PIDs that they have in the container."""
    rows = [
        (str(process.pid), process.name, str(process.threads), str(process.parent))
        for process in document.processes
    ]
    return table(("pid", "name", "threads", "parent"), rows)


def sockets(document: InspectedArchive) -> str:
    """Return the TCP and UDP sockets."""
    rows = [
        (
            socket.protocol,
            short_state(socket.state),
            middle(str(socket.local), 24),
            middle(str(socket.peer), 24) if socket.peer else "-",
            middle(socket.owner or "-", 36),
        )
        for socket in document.sockets
    ]
    return table(("", "state", "local", "peer", "held by"), rows) if rows else "no sockets"


def unix_sockets(document: InspectedArchive) -> str:
    """Return the unix sockets that have a name."""
    rows = [
        (socket.kind, socket.state, middle(socket.name, 70))
        for socket in document.unix_sockets
        if socket.name
    ]
    return table(("unix", "state", "name"), rows) if rows else "no unix socket has a name"


def needed_files(files: tuple[NeededFile, ...]) -> str:
    """Return the files that a restore looks for on the pod's volumes."""
    rows = [("?" if file.linked else size(file.size_bytes), file.path) for file in files]
    return table(("size", "needed on the pod's volumes"), rows)
