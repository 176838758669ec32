"""Ask an engine's HTTP API whether it is healthy, and wait until it is."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from pathlib import Path

from cria.errors import EngineFailed, Unhealthy
from cria.model.inventory import Endpoint, Inventory
from cria.system.procfs import stat

POLL_SECONDS = 0.01
_WAITS = "waits for "  # as cria_agent.rendezvous names a worker
_STATES = {
    "R": "runs",
    "S": "sleeps",
    "D": "waits for the kernel",
    "T": "is stopped by a signal",
    "t": "is stopped by a debugger",
    "Z": "has ended",
}


def url(endpoint: Endpoint) -> str:
    """The address a client on this host can use for a listener; a wildcard becomes loopback."""
    address = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(endpoint.address, endpoint.address)
    return f"http://{Endpoint(address=address, port=endpoint.port)}"


def is_healthy(base_url: str, *, timeout: float = 2.0) -> bool:
    """Whether GET /health answers 200."""
    connection = http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=timeout)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until_healthy(base_url: str, pid: int, *, seconds: float) -> None:
    """Poll until the engine is healthy. Raises EngineFailed if `pid` ends, Unhealthy on time-out."""
    deadline = time.monotonic() + seconds
    while not is_healthy(base_url):
        if not _alive(pid):
            raise EngineFailed(f"the engine ended before it was healthy (process {pid})")
        if time.monotonic() > deadline:
            raise Unhealthy(
                f"{base_url}/health did not answer within {seconds:g} seconds",
                remedy="give it longer with --wait SECONDS",
            )
        time.sleep(POLL_SECONDS)


def process_states(inventory: Inventory) -> Iterator[str]:
    """What each process does now: where an engine hangs, one that is stopped or gone is the reason."""
    for process in inventory.processes:
        now = stat(process.pid)
        state = now.state if now else "Z"
        words = _STATES.get(state, state)
        if now and now.name.startswith(_WAITS):
            words = f"{now.name.replace(_WAITS, _WAITS + 'rank ')} at the still point"
        yield f"{process.role.name} ({process.pid}) {words}"


def has_ended(inventory: Inventory, *, within: float) -> bool:
    """Whether a process of the engine is gone, or is so `within` seconds: then it cannot go on.

    What it held open is closed a moment before it is gone.
    """
    deadline = time.monotonic() + within
    while all(_alive(process.pid) for process in inventory.processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
