"""End an engine and clear away what an engine that was killed leaves behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cria.engine.take import take
from cria.process import ended


def stop(root: int, *, seconds: float = 20.0) -> None:
    """End the engine whose root process is `root`: SIGTERM first, SIGKILL for what lives after `seconds`.

    Shared memory and socket paths that no process unlinked are removed.
    """
    inventory = take(root, any_process=True)
    os.kill(root, signal.SIGTERM)
    if not ended.wait(inventory.processes, seconds):
        ended.kill(process.pid for process in inventory.processes)
        ended.wait(inventory.processes)
    if inventory.root.namespaces["mnt"] != Path("/proc/self/ns/mnt").stat().st_ino:
        return  # what it leaves ends with its mount namespace, and those paths are not ours
    for shared in inventory.shared_files:
        if shared.path is not None:
            Path(shared.path).unlink(missing_ok=True)
    for socket in inventory.unix_sockets:
        if socket.state == "LISTEN" and socket.path and socket.path.startswith("/"):
            Path(socket.path).unlink(missing_ok=True)
