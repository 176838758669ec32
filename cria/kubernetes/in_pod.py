"""What is run in a container, or on its node, to bring its engines to a still point and let them go on.

It is sent to the container together with criu_action, so it needs nothing but these and Python 3.9.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from cria.kubernetes.criu_action import Engine, Failed, find_engines

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
    begun = []
    try:
        for engine in engines:
            begun.append(engine)
            engine.ask("pause", request["seconds"], inflight=request["inflight"])
        stood = [engine.ask("quiesce", request["seconds"]) for engine in engines]
        leases = [renew(engine, request["lease"]) for engine in engines]
    except BaseException:
        for engine in begun:
            resume(engine)
        raise
    return {"engines": stood, "lease_seconds": min(filter(None, leases), default=None)}


def renew(engine: Engine, lease: float) -> float | None:
    """The seconds it stands still from now on; None where the engine's part of cria is too old to say."""
    try:
        return float(engine.ask("renew", RESUME_SECONDS, lease=lease)["lease_seconds"])
    except Failed as error:
        if "no such command" in str(error):
            return None
        raise


def resume(engine: Engine) -> bool:
    """Whether it was for us to resume: it may have gone on already, of itself or told by the node's hook."""
    try:
        return bool(engine.ask("resume", RESUME_SECONDS)["resumed"])
    except (Failed, OSError, ValueError):
        return False
