"""Clear away what an engine that was killed leaves on the host: shared memory and socket paths."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cria.inventory import Inventory


def clear(inventory: Inventory, more: Iterable[str] = ()) -> None:
    """Remove the paths that the engine of `inventory`, which has ended, had made; and `more` of them.

    An engine in a mount namespace of its own leaves nothing: what it made ended with that, and the
    same paths on the host are somebody else's.
    """
    if inventory.root.namespaces.get("mnt") != Path("/proc/self/ns/mnt").stat().st_ino:
        return
    shared = (file.path for file in inventory.shared_files if file.path is not None)
    bound = (s.path for s in inventory.unix_sockets if s.state == "LISTEN" and s.path)
    for path in (*shared, *more, *(path for path in bound if path.startswith("/"))):
        Path(path).unlink(missing_ok=True)
