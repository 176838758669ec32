"""A running engine, as a caller of the API holds it."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from cria.engine import files
from cria.engine.inventory.collect import collect_inventory
from cria.events import Timings
from cria.memory.shared.directory import SharedMemory
from cria.model.inventory import Inventory
from cria.model.socket import LISTEN
from cria.system import processes, sock_diag
from cria.system.paths import Place, place_of


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


def clean_up(inventory: Inventory, stores: Iterable[str] = ()) -> None:
    """Remove the shared memory and the socket paths of an engine that has ended, and its `stores`.

    Only what is still the engine's own is removed: the file of the inventory, a socket to which nobody
    listens any more, a store of the engine's user. Nothing is removed for an engine that had a mount
    namespace of its own: what it made ended with that namespace, and the same paths on the host belong
    to others.
    """
    if inventory.root.namespaces.get("mnt") != Path("/proc/self/ns/mnt").stat().st_ino:
        return
    uids = {process.uid for process in inventory.processes}
    for file in inventory.shared_files:
        if file.path is not None:
            with _place(file.path, uids) as place:
                if place is not None:
                    place.unlink_if(file.device, file.inode)
    listening = {row.path for row in sock_diag.unix_rows() if row.path and row.state == LISTEN}
    bound = {s.path for s in inventory.unix_sockets if s.state == "LISTEN" and s.path}
    for path in bound - listening:
        _remove(path, uids, stat.S_ISSOCK)
    for path in stores:
        _remove(path, uids, stat.S_ISREG)


def _remove(path: str, uids: Collection[int], is_kind: Callable[[int], bool]) -> None:
    """Remove a path where it is of this kind and of the engine's user."""
    if not path.startswith("/"):
        return
    with _place(path, uids) as place, suppress(FileNotFoundError):
        status = place.lstat() if place is not None else None
        if place and status and is_kind(status.st_mode) and status.st_uid in uids:
            place.unlink()


@contextmanager
def _place(path: str, uids: Collection[int]) -> Iterator[Place | None]:
    """Yield the place of a path; None where its directory is gone, or a stranger's link leads there."""
    with ExitStack() as opened:
        place = None
        with suppress(OSError):
            place = opened.enter_context(place_of(path, trusted=uids))
        yield place
