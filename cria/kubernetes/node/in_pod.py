"""What is run in a container, or on its node, to bring its engines to a still point and let them go on.

It is sent to the container together with criu_action, so it needs nothing but these and Python 3.9.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from cria.kubernetes.node.criu_action import Engine, Failed, find_engines, stand_still

RESUME_SECONDS = 10.0


def main(request: str) -> None:
    """Print the answer to a request for the engines of this container."""
    print(answer(request, lambda: find_engines(os.getpid(), ours())))


def answer(request: str, engines: Callable[[], list[Engine]]) -> str:
    """What `carry_out` returns, or {"error": ...}; both requests and answers are JSON."""
    try:
        return json.dumps(carry_out(json.loads(request), engines()))
    except (Failed, OSError, ValueError) as error:
        return json.dumps({"error": str(error) or type(error).__name__})


def ours() -> list[int]:
    """The processes of this container: those that see the same files. A pod may show all of the node's."""
    here = os.readlink("/proc/self/ns/mnt")
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mount(pid) == here]


def mount(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:  # it has ended, or is somebody else's
        return ""


def carry_out(request: dict[str, Any], engines: list[Engine]) -> dict[str, Any]:
    """{"command": "pause", "inflight", "seconds", "lease"} or {"command": "resume"}.

    Raises Failed, OSError or ValueError; every engine was then told to go on.
    """
    if request["command"] == "resume":
        return {"resumed": [resume(engine) for engine in engines]}
    if request["command"] != "pause":
        raise Failed(f"no such command: {request['command']}")
    wish = (request["inflight"], request["seconds"], request["lease"])
    try:
        stood, leases = stand_still(engines, *wish)
    except BaseException:
        for engine in engines:
            resume(engine)
        raise
    return {"engines": stood, "lease_seconds": min(leases, default=None)}


def resume(engine: Engine) -> bool:
    """Whether it was for us to resume: it may have gone on already, of itself or told by the node's hook."""
    try:
        return bool(engine.ask("resume", RESUME_SECONDS)["resumed"])
    except (Failed, OSError, ValueError):
        return False
