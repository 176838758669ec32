"""Plan where the sockets of a checkpoint archive go, and what its files.img becomes: nothing is written."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from cria.criu.images import framing
from cria.criu.images.directory import CriuImages
from cria.kubernetes.archive.contents import Mention, find_mentions
from cria.kubernetes.archive.reader import Archive
from cria.model.socket import Occupant, PortSocket
from cria.network.images import apply_plan, sockets_of
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


def sockets(images: CriuImages) -> tuple[PortSocket, ...]:
    """Return the inet sockets of an archive, with the processes that hold them; their roles are not known."""
    owners: dict[int, str] = {}
    for holder in images.holders:
        for file_id in holder.file_ids:
            owners[file_id] = f"{owners[file_id]}, {holder}" if file_id in owners else str(holder)
    return sockets_of(images.files, owners=owners)


def plan_archive(
    archive: Archive,
    images: CriuImages,
    wishes: PortRequests,
    in_use: Iterable[Occupant] = (),
    **policies: Any,
) -> ArchivePlan:
    """Plan an archive as cria.network.planner does a checkpoint; unless ports are kept, a network is shared.

    Then abstract unix names, which belong to the network, are changed as well. Raises what that raises,
    and CheckpointDamaged.
    """
    made = plan(sockets(images), in_use, wishes, **policies)
    names = {} if wishes.mode == "keep" else _unix_names(images)
    old_ports = made.moved_ports.keys()
    return ArchivePlan(
        ports=made,
        unix_names=names,
        mentions=find_mentions(archive.texts, old_ports, wishes.addresses),
    )


def edited(images: CriuImages, planned: ArchivePlan) -> bytes:
    """Return the files.img of an archive with its sockets where `planned` has them."""
    image = apply_plan(images.files, planned.ports, planned.unix_names).image
    return framing.join(image.header, image.entries)


def _unix_names(images: CriuImages) -> dict[int, bytes]:
    tag = f".cria-{secrets.token_hex(4)}".encode()
    return {
        socket.file_id: socket.name[: LONGEST_UNIX_NAME - len(tag)] + tag
        for socket in images.unix_sockets()
        if socket.name.startswith(b"\0")
    }
