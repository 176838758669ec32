"""A process that is controlled as an engine is, down to the last command: `python controlled.py PATH`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "cria" / "engine" / "inside" / "on-path"))
from cria_inside import control
from cria_inside.commands import Commands


class StrawEngine:
    """Stands in for vLLM. Its workers count their calls, which tells one process from its clone."""

    def __init__(self) -> None:
        self.paused = False
        self.calls = 0

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert clear_cache
        self.paused = True

    async def resume_generation(self) -> None:
        self.paused = False

    async def is_paused(self) -> bool:
        return self.paused

    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()
    ) -> list[dict[str, Any]]:
        self.calls += 1
        one = {"groups": 3, "dropped_bytes": 4096, "error": None, "calls": self.calls}
        return [{"rank": rank, **one} for rank in range(2)]


async def main() -> None:
    await control.serve(Commands(StrawEngine()), sys.argv[1])
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
