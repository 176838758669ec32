"""Plan where the sockets of a checkpoint archive go, and what its files.img becomes. Nothing is written."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

import msgspec

from cria.criu.images import framing
from cria.criu.images.directory import CriuImages
from cria.kubernetes.archive.contents import Mention, find_mentions
from cria.kubernetes.archive.reader import Archive
from cria.model.socket import Occupant, Policy, PortSocket
from cria.network.images import apply_plan, sockets_of
from cria.network.plan import PortPlan
from cria.network.planner import plan
from cria.network.requests import PortRequests

UNIX_NAME_BYTES = 108  # of an abstract name, with the NUL at its beginning (unix(7))


class ArchivePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where each socket goes, the new abstract unix names by file ID, and where old ports are still named."""

    ports: PortPlan
    unix_names: Mapping[int, bytes]
    mentions: tuple[Mention, ...]


def sockets(images: CriuImages) -> tuple[PortSocket, ...]:
    """Return the inet sockets of an archive with the processes that hold them. An archive records no roles."""
    owners: dict[int, str] = {}
    for holder in images.holders:
        for file_id in holder.file_ids:
            owners[file_id] = f"{owners[file_id]}, {holder}" if file_id in owners else str(holder)
    return sockets_of(images.files, owners=owners)


def plan_archive(
    archive: Archive,
    images: CriuImages,
    requests: PortRequests,
    in_use: Iterable[Occupant] = (),
    *,
    outside: Policy = "refuse",
    clients: Policy = "close",
) -> ArchivePlan:
    """Plan an archive as cria.network.planner plans a checkpoint.

    Unless all ports are kept, the copy shares the network of its original, and abstract unix names, which belong to
    the network namespace, change as well. Raises what `cria.network.planner.plan` raises, and CheckpointDamaged.
    """
    ports = plan(sockets(images), in_use, requests, outside=outside, clients=clients)
    return ArchivePlan(
        ports=ports,
        unix_names={} if requests.mode == "keep" else _new_unix_names(images),
        mentions=find_mentions(archive.texts, ports.moved_ports.keys(), requests.addresses),
    )


def edited_files_image(images: CriuImages, planned: ArchivePlan) -> bytes:
    """Return the files.img of an archive with its sockets where `planned` has them."""
    image = apply_plan(images.files, planned.ports, planned.unix_names).image
    return framing.join(image.header, image.entries)


def _new_unix_names(images: CriuImages) -> dict[int, bytes]:
    suffix = f".cria-{secrets.token_hex(4)}".encode()
    return {
        socket.file_id: socket.name[: UNIX_NAME_BYTES - len(suffix)] + suffix
        for socket in images.unix_sockets()
        if socket.name.startswith(b"\0")
    }
