"""Wait until an engine is healthy, and say what its processes do when it is not."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cria.engine.http_api import is_healthy
from cria.errors import EngineFailed, Unhealthy
from cria.model.inventory import Inventory
from cria.system.procfs import stat

POLL_SECONDS = 0.01
_WAITS_FOR = (
    "waits for "  # a worker that waits for other ranks has this name: cria_agent.rendezvous
)
_STATES = {
    "R": "runs",
    "S": "sleeps",
    "D": "waits for the kernel",
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "Z": "has ended",
}


def wait_until_healthy(base_url: str, pid: int, *, seconds: float) -> None:
    """Poll until the engine is healthy. Raises EngineFailed when `pid` ends, Unhealthy after `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_healthy(base_url):
        if not _is_alive(pid):
            raise EngineFailed(f"the engine ended before it was healthy (process {pid})")
        if time.monotonic() > deadline:
            raise Unhealthy(
                f"{base_url}/health did not answer within {seconds:g} seconds",
                remedy="give it longer with --wait SECONDS",
            )
        time.sleep(POLL_SECONDS)


def process_states(inventory: Inventory) -> Iterator[str]:
    """Say what each process does now: where an engine hangs, one that is stopped or has ended is the reason."""
    for process in inventory.processes:
        now = stat(process.pid)
        code = now.state if now else "Z"
        state = _STATES.get(code, code)
        if now and now.name.startswith(_WAITS_FOR):
            ranks = now.name.removeprefix(_WAITS_FOR)
            state = f"waits for rank {ranks} at the barrier before the dump"
        yield f"{process.role.name} ({process.pid}) {state}"


def has_ended(inventory: Inventory, *, within: float) -> bool:
    """Say whether a process of the engine has ended, or ends `within` seconds: the engine cannot go on without it.

    The kernel closes what a process held open, which is often noticed first, a moment before the process is gone.
    """
    deadline = time.monotonic() + within
    while all(_is_alive(process.pid) for process in inventory.processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _is_alive(pid: int) -> bool:
    now = stat(pid)
    return now is not None and now.state not in ("Z", "X")
