"""Find the control socket of an engine in its inventory, and ask the engine for what only it knows."""

from __future__ import annotations

import msgspec

from cria.engine.control.client import ControlClient, ControlFailed
from cria.engine.inventory.roles import CONTROL
from cria.errors import QuiesceFailed
from cria.model.inventory import Inventory, NamedGroup


def find_client(inventory: Inventory) -> ControlClient | None:
    """Return a client of the engine's control socket; None when cria's agent is not inside."""
    for listener in inventory.unix_sockets:
        if listener.state != "LISTEN" or listener.role.name != CONTROL:
            continue
        if listener.path and listener.holders:
            return ControlClient(listener.holders[0].pid, listener.path)
    return None


def named_groups(inventory: Inventory, *, seconds: float = 2.0) -> tuple[NamedGroup, ...]:
    """Return the process groups of torch.distributed as the workers name them; none without cria's agent.

    Raises QuiesceFailed when a worker does not answer within `seconds`, as in the middle of a long step.
    """
    client = find_client(inventory)
    if client is None:
        return ()
    try:
        workers = client.call("groups", seconds=seconds)["ranks"]
    except ControlFailed as failed:
        raise QuiesceFailed(failed.message, details=failed.details) from failed
    groups = msgspec.convert([group for worker in workers for group in worker], list[NamedGroup])
    return tuple(sorted(set(groups)))
