"""Plan where the sockets of a checkpoint archive go, and what its files.img becomes: nothing is written."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cria.criu.images import files, framing
from cria.criu.images.files import UnixSocket
from cria.kubernetes.archive.contents import Mention, decoding, mentions
from cria.kubernetes.archive.reader import Archive
from cria.model.socket import Occupant, PortSocket
from cria.network.images import sockets_of_image
from cria.network.plan import PortPlan
from cria.network.planner import plan
from cria.network.requests import PortRequests

LONGEST_UNIX_NAME = 108  # of unix(7), the NUL at its beginning included


class ArchivePlan(msgspec.Struct, frozen=True, kw_only=True):
    """`ports` says what becomes of each socket, `unix_names` which abstract names are new, by file ID.

    `mentions` are what goes on naming what has moved.
    """

    ports: PortPlan
    unix_names: Mapping[int, bytes]
    mentions: tuple[Mention, ...]


def sockets(archive: Archive, criu: Path | None = None) -> tuple[PortSocket, ...]:
    """The inet sockets of an archive, with the processes that hold them; their roles are not known."""
    owners: dict[int, str] = {}
    for holder in archive.holders(criu):
        for file_id in holder.file_ids:
            owners[file_id] = f"{owners[file_id]}, {holder}" if file_id in owners else str(holder)
    with decoding(archive):
        return sockets_of_image(archive.files_image(), criu, owners=owners)


def unix_sockets(archive: Archive, criu: Path | None = None) -> tuple[UnixSocket, ...]:
    """The unix sockets of an archive."""
    with decoding(archive):
        return files.unix_sockets(archive.files_image(), criu)


def plan_archive(
    archive: Archive,
    wishes: PortRequests,
    in_use: Iterable[Occupant] = (),
    *,
    criu: Path | None = None,
    **policies: Any,
) -> ArchivePlan:
    """Plan an archive as cria.network.planner does a checkpoint; unless ports are kept, a network is shared.

    Then abstract unix names, which belong to the network, are changed as well. Raises what that raises,
    and CheckpointDamaged.
    """
    made = plan(sockets(archive, criu), in_use, wishes, **policies)
    names = {} if wishes.mode == "keep" else _unix_names(archive, criu)
    old_ports = made.moved_ports.keys()
    return ArchivePlan(
        ports=made,
        unix_names=names,
        mentions=mentions(archive.texts, old_ports, wishes.addresses),
    )


def edited(archive: Archive, planned: ArchivePlan, criu: Path | None = None) -> bytes:
    """The files.img of the archive with its sockets where `planned` has them."""
    moves = {move.id: move for move in planned.ports.changes}
    with decoding(archive):
        image = files.edited(
            archive.files_image(), inet=moves, unix=planned.unix_names, criu_binary=criu
        )
    return framing.join(image.header, image.entries)


def _unix_names(archive: Archive, criu: Path | None) -> dict[int, bytes]:
    tag = f".cria-{secrets.token_hex(4)}".encode()
    return {
        socket.file_id: socket.name[: LONGEST_UNIX_NAME - len(tag)] + tag
        for socket in unix_sockets(archive, criu)
        if socket.name.startswith(b"\0")
    }
