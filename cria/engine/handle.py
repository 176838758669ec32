"""A running engine, as a caller of the API holds it."""

from __future__ import annotations

import msgspec

from cria.inventory import Endpoint
from cria.operation import Timings


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that cria started or restored. `ports` maps each published port of the checkpoint to its new one."""

    pid: int
    url: str | None
    ports: dict[int, int] = {}
    listeners: tuple[Endpoint, ...] = ()
    timings: Timings | None = None

    def is_healthy(self) -> bool:
        from cria.engine import health

        return self.url is not None and health.is_healthy(self.url)

    def stop(self, *, seconds: float = 20.0) -> None:
        """End the engine: SIGTERM, and after `seconds` SIGKILL for what is left of its tree."""
        from cria.engine import stop

        stop.stop(self.pid, seconds=seconds)
