"""A running engine, as a caller of the API holds it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cria.engine import files
from cria.engine.inventory.collect import collect_inventory
from cria.events import Timings
from cria.memory.shared.directory import SharedMemory
from cria.model.inventory import Inventory
from cria.system import processes


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that cria restored.

    `ports` maps each API port of the checkpoint to its new one; `ports_moved` counts all listening ports
    that moved. `url` is None for a program that serves no HTTP API. `shared_memory` says what the engine
    shares with other clones, None where that was not asked for.
    """

    pid: int
    url: str | None
    ports: dict[int, int] = {}
    ports_moved: int = 0
    timings: Timings | None = None
    shared_memory: SharedMemory | None = None

    def is_healthy(self) -> bool:
        """Say whether the engine answers GET /health with 200."""
        from cria.engine import http_api  # `import cria` need not wait 16 ms for http.client

        return self.url is not None and http_api.is_healthy(self.url)

    def stop(self, *, seconds: float = 20.0) -> None:
        """End the engine: SIGTERM, then SIGKILL for the processes that live after `seconds`."""
        stop(self.pid, seconds=seconds)


def stop(root: int, *, seconds: float = 20.0) -> None:
    """End the engine whose root process is `root`: SIGTERM, then SIGKILL for what lives after `seconds`.

    Shared memory, socket paths and stores that the engine did not unlink are removed.
    """
    inventory = collect_inventory(root, any_process=True)
    stores = files.file_stores(inventory)
    os.kill(root, signal.SIGTERM)
    if not processes.wait_for_exit(inventory.processes, seconds):
        processes.kill(process.pid for process in inventory.processes)
        processes.wait_for_exit(inventory.processes)
    clean_up(inventory, stores)


def clean_up(inventory: Inventory, more_paths: Iterable[str] = ()) -> None:
    """Remove the shared memory and the socket paths of an engine that has ended, and `more_paths`.

    Nothing is removed for an engine that had a mount namespace of its own: what it made ended with that
    namespace, and the same paths on the host belong to others.
    """
    if inventory.root.namespaces.get("mnt") != Path("/proc/self/ns/mnt").stat().st_ino:
        return
    shared = (file.path for file in inventory.shared_files if file.path is not None)
    bound = (s.path for s in inventory.unix_sockets if s.state == "LISTEN" and s.path)
    for path in (*shared, *more_paths, *(path for path in bound if path.startswith("/"))):
        Path(path).unlink(missing_ok=True)
