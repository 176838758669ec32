"""Name the processes that a finding is about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cria.inventory import Holder, Inventory
from cria.process.tree import PROC


def named(inventory: Inventory, pid: int) -> str:
    """A process of the engine by its PID, and by its role or else its name."""
    for process in inventory.processes:
        if process.pid == pid:
            known = process.role.confidence != "unknown"
            return f"process {pid} ({process.role.name if known else process.name})"
    return f"process {pid}"


def holders(inventory: Inventory, held: Iterable[Holder]) -> str:
    """Who has something open: each process with its descriptor."""
    return ", ".join(f"{named(inventory, h.pid)} fd {h.fd}" for h in held) or "no process"


def stranger(pid: int, proc: Path = PROC) -> str:
    """A process outside the engine by its PID and its name."""
    try:
        return f"PID {pid} ({Path(f'{proc}/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"PID {pid}"


def owner_of(inode: int, fallback: str) -> str:
    """Who on this host has the socket `inode` open. Reads all of /proc."""
    from cria.ports.occupancy import owners_of

    return owners_of({inode}).get(inode, fallback) if inode else fallback
