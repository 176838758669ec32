"""End an engine."""

from __future__ import annotations

import os
import signal

from cria.engine import belongings, leftovers
from cria.engine.take import take
from cria.process import ended


def stop(root: int, *, seconds: float = 20.0) -> None:
    """End the engine whose root process is `root`: SIGTERM first, SIGKILL for what lives after `seconds`.

    Shared memory, socket paths and stores that no process unlinked are removed.
    """
    inventory = take(root, any_process=True)
    stores = belongings.file_stores(inventory)
    os.kill(root, signal.SIGTERM)
    if not ended.wait(inventory.processes, seconds):
        ended.kill(process.pid for process in inventory.processes)
        ended.wait(inventory.processes)
    leftovers.clear(inventory, stores)
