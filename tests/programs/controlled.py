"""A process with the control socket of an engine, which carries out every command.

python controlled.py PATH [LEASE_SECONDS [CALL]]: the process ends at CALL, a method of the engine.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "cria" / "agent" / "on-path"))
from cria_agent import control_socket
from cria_agent.commands import LEASE_SECONDS, Commands


class FakeEngine:
    """A fake vLLM. Its workers count their calls, which tells one process from its clone."""

    def __init__(self, dies_at: str = "") -> None:
        self.paused = False
        self.calls = 0
        self.dies_at = dies_at

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert clear_cache
        self.paused = True
        self._die("pause_generation")

    async def resume_generation(self) -> None:
        self.paused = False

    async def is_paused(self) -> bool:
        return self.paused

    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()
    ) -> list[dict[str, Any]]:
        self.calls += 1
        self._die("collective_rpc")
        report = {"groups": 3, "dropped_bytes": 4096, "error": None, "stores": []}
        report["calls"] = self.calls
        return [{"rank": rank, **report} for rank in range(2)]

    def _die(self, call: str) -> None:
        if call == self.dies_at:
            os._exit(7)


async def main() -> None:
    path, *options = sys.argv[1:]
    lease = float(options[0]) if options else LEASE_SECONDS
    engine = FakeEngine(dies_at=options[1] if len(options) > 1 else "")
    await control_socket.serve(Commands(engine, lease), path)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
