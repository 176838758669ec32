"""Where a plan's sockets come from: the images of a checkpoint or the inventory of a live engine."""

from __future__ import annotations

from collections.abc import Mapping

from cria.criu.images.files import FilesImage, ImageSocket, edit_sockets
from cria.model.inventory import Inventory, Socket
from cria.model.socket import Endpoint, PortSocket
from cria.network import plan
from cria.network.plan import PortPlan

_Ends = tuple[Endpoint, Endpoint | None]


def sockets_of(
    files: FilesImage,
    *,
    inventory: Inventory | None = None,
    owners: Mapping[int, str] | None = None,
) -> tuple[PortSocket, ...]:
    """Return the inet sockets in files.img.

    Roles and owners come from the `inventory` of the same dump. Without one the roles are not known, and
    `owners` says for a file ID which processes have the file open.
    """
    live_sockets = inventory.sockets if inventory else ()
    by_inode = {live.inode: live for live in live_sockets}
    by_ends: dict[_Ends, Socket] = {(live.local, live.peer): live for live in live_sockets}
    return tuple(
        _of_image(
            socket,
            by_inode.get(socket.inode) or by_ends.get((socket.local, socket.peer)),
            inventory,
            owners.get(socket.file_id, "") if owners else "",
        )
        for socket in files.inet_sockets
    )


def sockets_of_engine(inventory: Inventory) -> tuple[PortSocket, ...]:
    """The inet sockets of a live engine; `id` is the inode, `ns_id` the inode of the namespace."""
    return tuple(_of_live(socket, inventory) for socket in inventory.sockets)


def _of_image(
    image_socket: ImageSocket, live: Socket | None, inventory: Inventory | None, owner: str = ""
) -> PortSocket:
    role = live.role.name if live else "unknown"
    return PortSocket(
        id=image_socket.file_id,
        ns_id=image_socket.ns_id,
        family=image_socket.family,
        protocol=image_socket.protocol,
        state=image_socket.state,
        local=image_socket.local,
        peer=image_socket.peer,
        dual_stack=image_socket.dual_stack,
        reuse_port=image_socket.reuse_port,
        inode=image_socket.inode,
        role=role,
        owner=_owner(live, inventory) if live and inventory else owner,
        pinned=plan.pinned(role, image_socket.state),
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


def apply_plan(
    files: FilesImage, plan: PortPlan, unix_names: Mapping[int, bytes] | None = None
) -> FilesImage:
    """Return files.img with every socket where `plan` has it, and new names of unix sockets by file ID.

    Raises CheckpointMismatch for the plan of other images.
    """
    return edit_sockets(files, inet={move.id: move for move in plan.changes}, unix=unix_names)
