"""A running engine, as a caller of the API holds it."""

from __future__ import annotations

import msgspec

from cria.sharing.model import SharedMemory
from cria.timings import Timings


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that cria restored.

    `ports` maps each published port of the checkpoint to its new one; `ports_moved` counts all
    listening ports that moved. `url` is None for a program that serves no HTTP API.
    `shared_memory` says what it shares with other clones, where that was asked for.
    """

    pid: int
    url: str | None
    ports: dict[int, int] = {}
    ports_moved: int = 0
    timings: Timings | None = None
    shared_memory: SharedMemory | None = None

    def is_healthy(self) -> bool:
        from cria.engine import health

        return self.url is not None and health.is_healthy(self.url)

    def stop(self, *, seconds: float = 20.0) -> None:
        """End the engine: SIGTERM, and after `seconds` SIGKILL for what is left of its tree."""
        from cria.engine import stop

        stop.stop(self.pid, seconds=seconds)
