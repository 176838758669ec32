"""Quiesce and resume the engines of a container, from within it or from its node. For Python 3.9.

This file is sent to the container with the two modules of cria that it imports, which need nothing else either.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from cria.engine.control.client import ControlClient, ControlFailed, quiesce_all
from cria.kubernetes.node.criu_engines import find_control_sockets, pids_in_our_namespace

RESUME_SECONDS = 10.0


def main(request: str) -> None:
    """Print the answer to a request, both of them JSON, for the engines of this container."""
    print(answer(request, lambda: find_engines(os.getpid(), container_pids())))


def answer(request: str, find: Callable[[], Sequence[ControlClient]]) -> str:
    """Return what `handle` returns for the engines that `find` finds, or {"error": ...}, as JSON."""
    try:
        return json.dumps(handle(json.loads(request), find()))
    except (ControlFailed, OSError, ValueError) as error:
        return json.dumps({"error": str(error) or type(error).__name__})


def find_engines(root: int, pids: list[int]) -> list[ControlClient]:
    """Return a client for each control socket of the processes `pids`, one of which is `root`. Raises OSError."""
    trusted = pids_in_our_namespace(pids)
    return [ControlClient(pid, path, trusted) for pid, path in find_control_sockets(root, pids)]


def container_pids() -> list[int]:
    """Return the processes of this container: a pod may show those of its other containers or of its node as well."""
    here = os.readlink("/proc/self/ns/mnt")
    pids = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [pid for pid in pids if _mount_namespace(pid) == here]


def handle(request: dict[str, Any], engines: Sequence[ControlClient]) -> dict[str, Any]:
    """Carry out {"command": "pause", "inflight", "seconds", "lease"} or {"command": "resume"}.

    Returns what cria.kubernetes.kubelet.quiesce reads as an answer. Raises ControlFailed or ValueError; then every
    engine was resumed.
    """
    if request["command"] == "resume":
        return {"resumed": [_resume(engine) for engine in engines]}
    if request["command"] != "pause":
        raise ValueError(f"no such command: {request['command']}")
    try:
        reports, leases = quiesce_all(
            engines, request["inflight"], request["seconds"], request["lease"]
        )
    except BaseException:
        for engine in engines:
            _resume(engine)
        raise
    return {"engines": reports, "lease_seconds": min(leases, default=None)}


def _resume(engine: ControlClient) -> bool:
    """Resume an engine. Returns False where its lease had ended, or the node's action script had resumed it."""
    try:
        return engine.resume(RESUME_SECONDS)
    except ControlFailed:
        return False


def _mount_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:  # the process has ended, or belongs to another user
        return ""
