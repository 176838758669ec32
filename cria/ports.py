"""The public names of cria.network: plan where each socket goes, reserve ports, rewrite images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cria.criu.images.directory import CriuImages, private_view
from cria.criu.images.files import NAME, FilesImage
from cria.criu.images.framing import Image
from cria.criu.images.schema import Schema
from cria.model.inventory import Inventory
from cria.model.socket import Occupant, PortSocket, Target
from cria.network import images as _images
from cria.network.images import sockets_of_engine
from cria.network.listeners import clear_port_reuse, verify_listeners
from cria.network.occupancy import occupants
from cria.network.plan import Move, PortPlan
from cria.network.planner import plan, plan_clones
from cria.network.requests import PortRequests
from cria.network.reservation import Reservation, reserve, reserve_any

# Their names in cria 0.1.
Wishes, check_owned, seal = PortRequests, verify_listeners, clear_port_reuse

__all__ = [
    "Move",
    "Occupant",
    "PortPlan",
    "PortRequests",
    "PortSocket",
    "Reservation",
    "Target",
    "Wishes",
    "check_owned",
    "clear_port_reuse",
    "occupants",
    "plan",
    "plan_clones",
    "private_view",
    "reserve",
    "reserve_any",
    "rewrite",
    "seal",
    "sockets_of",
    "sockets_of_engine",
    "sockets_of_image",
    "verify_listeners",
]


def sockets_of(
    images_dir: Path, criu_binary: Path | None = None, *, inventory: Inventory | None = None
) -> tuple[PortSocket, ...]:
    """Return the inet sockets in `images_dir`; roles and owners come from the `inventory` of the same dump."""
    return _images.sockets_of(CriuImages(images_dir, criu_binary).files, inventory=inventory)


def sockets_of_image(
    image: Image, criu_binary: Path | None = None, *, owners: Mapping[int, str]
) -> tuple[PortSocket, ...]:
    """Return the inet sockets of a files.img in memory, of which there is no inventory.

    `owners` says for a file ID which processes have the file open; the roles are not known.
    """
    return _images.sockets_of(FilesImage(image, Schema(criu_binary)), owners=owners)


def rewrite(
    images_dir: Path,
    plan: PortPlan,
    out: Path | None = None,
    *,
    unix: Mapping[int, bytes] | None = None,
    criu_binary: Path | None = None,
) -> Path:
    """Write files.img with the endpoints of `plan`, and return its path.

    It is written to the directory `out`, which becomes a private view of `images_dir` where it is none
    yet; without `out` the file is replaced. `unix` has new names of unix sockets by file ID. Raises
    CheckpointMissing, CheckpointDamaged, CheckpointMismatch for the plan of other images, or NotWritable.
    """
    changed = _images.apply_plan(CriuImages(images_dir, criu_binary).files, plan, unix)
    if out is not None and not (out / NAME).exists():
        private_view(images_dir, out)
    return changed.write(out or images_dir, durable=out is None)
