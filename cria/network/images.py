"""Where a plan's sockets come from: the images of a checkpoint or the inventory of a live engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cria.criu.images import files, framing
from cria.criu.images.files import InetSocket
from cria.criu.images.framing import Image
from cria.errors import NotWritable
from cria.model.inventory import Endpoint, Inventory, Socket
from cria.model.socket import PortSocket
from cria.network import plan
from cria.network.plan import PortPlan

_Ends = tuple[Endpoint, Endpoint | None]


def sockets_of(
    images_dir: Path, criu_binary: Path | None = None, *, inventory: Inventory | None = None
) -> tuple[PortSocket, ...]:
    """The inet sockets in `images_dir`; roles and owners come from the `inventory` of the same dump."""
    found = files.inet_sockets(files.read(images_dir), criu_binary)
    by_inode = {each.inode: each for each in inventory.sockets} if inventory else {}
    by_ends: dict[_Ends, Socket] = {(each.local, each.peer): each for each in by_inode.values()}
    return tuple(
        _of_image(each, by_inode.get(each.inode) or by_ends.get((each.local, each.peer)), inventory)
        for each in found
    )


def sockets_of_image(
    image: Image, criu_binary: Path | None = None, *, owners: Mapping[int, str]
) -> tuple[PortSocket, ...]:
    """The inet sockets of a files.img in memory, of which nobody took an inventory.

    `owners` names the processes that have a file open, by its ID; the roles are not known.
    """
    found = files.inet_sockets(image, criu_binary)
    return tuple(_of_image(each, None, None, owners.get(each.file_id, "")) for each in found)


def sockets_of_engine(inventory: Inventory) -> tuple[PortSocket, ...]:
    """The inet sockets of a live engine; `id` is the inode, `ns_id` the inode of the namespace."""
    return tuple(_of_live(each, inventory) for each in inventory.sockets)


def _of_image(
    found: InetSocket, live: Socket | None, inventory: Inventory | None, owner: str = ""
) -> PortSocket:
    role = live.role.name if live else "unknown"
    return PortSocket(
        id=found.file_id,
        ns_id=found.ns_id,
        family=found.family,
        protocol=found.protocol,
        state=found.state,
        local=found.local,
        peer=found.peer,
        dual_stack=found.dual_stack,
        reuse_port=found.reuse_port,
        inode=found.inode,
        role=role,
        owner=_owner(live, inventory) if live and inventory else owner,
        pinned=plan.pinned(role, found.state),
    )


def _of_live(live: Socket, inventory: Inventory) -> PortSocket:
    return PortSocket(
        id=live.inode,
        ns_id=live.netns,
        family=live.family,
        protocol=live.protocol,
        state=live.state,
        local=live.local,
        peer=live.peer,
        dual_stack=live.dual_stack,
        inode=live.inode,
        role=live.role.name,
        owner=_owner(live, inventory),
        pinned=plan.pinned(live.role.name, live.state),
    )


def _owner(live: Socket, inventory: Inventory) -> str:
    names = {process.pid: process.name for process in inventory.processes}
    pids = dict.fromkeys(holder.pid for holder in live.holders)
    return ", ".join(_named(pid, names) for pid in pids)


def _named(pid: int, names: dict[int, str]) -> str:
    return f"PID {pid} ({names[pid]})" if names.get(pid) else f"PID {pid}"


def rewrite(
    images_dir: Path,
    plan: PortPlan,
    out: Path | None = None,
    *,
    unix: Mapping[int, bytes] | None = None,
    criu_binary: Path | None = None,
) -> Path:
    """Put the endpoints of `plan` into files.img and return its path.

    It is written to the directory `out`, which becomes a private view of `images_dir` where it is none
    yet; without `out` the file is replaced in place. `unix` gives new names to unix sockets by file ID.
    Raises CheckpointMissing, CheckpointDamaged, or CheckpointMismatch for the plan of another image.
    """
    image = files.read(images_dir)
    moves = {move.id: move for move in plan.moves if move.changes}
    changed = files.edited(image, inet=moves, unix=unix, criu_binary=criu_binary)
    if out is not None and not (out / files.NAME).exists():
        private_view(images_dir, out)
    target = (out or images_dir) / files.NAME
    try:
        framing.write(target, changed, durable=out is None)
    except OSError as error:
        raise NotWritable(f"{target} cannot be written", details=str(error)) from error
    return target


def private_view(images_dir: Path, at: Path) -> Path:
    """Make `at` a directory of links to the images in `images_dir`, and return it.

    files.img is linked like the others: `rewrite` replaces the link and leaves the original alone.
    Logs and statistics are left out, for CRIU would write through their links.
    """
    try:
        at.mkdir(parents=True, exist_ok=True)
        there = images_dir.resolve()
        for name in os.listdir(there):  # noqa: PTH208 - a hundred of them, before every restore
            if name.endswith(".img") or name == "parent":
                os.symlink(f"{there}/{name}", f"{at}/{name}")  # noqa: PTH211
    except OSError as error:
        raise NotWritable(f"{at} cannot hold a view of {images_dir}", details=str(error)) from error
    return at
