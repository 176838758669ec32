"""Let vLLM free the GPU memory that it can fill again, and wake it up: its sleep mode, and its checkpoint hooks."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

# What happens to the weights, and vLLM's sleep level: kept in host memory, or read again from the model's files.
LEVELS = {"keep": 1, "drop": 2}


class Sleeper(Protocol):
    """The part of vLLM's AsyncLLM that is used here.

    It may have checkpoint_prepare() and checkpoint_restore() too (vLLM's PR 46877).
    """

    async def sleep(self, level: int = 1, mode: Any = "abort") -> None: ...
    async def wake_up(self, tags: list[str] | None = None) -> Any: ...
    async def collective_rpc(self, method: str) -> Any: ...


class Sleep:
    """Puts one engine to sleep and wakes it up. `weights` says what happened to them; None while it is awake."""

    def __init__(self, engine: Sleeper) -> None:
        self._engine = engine
        self._prepared = False
        # A client that gives up while the engine falls asleep asks to wake it up: that waits until it sleeps.
        self._lock = asyncio.Lock()
        self.weights: str | None = None

    async def fall_asleep(self, weights: str) -> None:
        """Tear down what ranks share outside of NCCL, then free the KV cache, and the weights as `weights` says.

        An engine that was started without --enable-sleep-mode has no memory that it could free.
        """
        async with self._lock:
            self._prepared = True
            await self._call_hook("checkpoint_prepare")
            if can_sleep(self._engine):
                self.weights = weights
                await self._engine.sleep(LEVELS[weights], mode="keep")

    async def wake_up(self) -> None:
        """Bring everything back to the GPU, the KV cache last: with it vLLM lets requests be computed.

        What was never put to sleep stays as it is, so this can be called whatever went wrong before.
        """
        async with self._lock:
            weights = self.weights
            if weights is not None:
                await self._engine.wake_up(["weights"])
            if weights == "drop":
                await self._engine.collective_rpc("reload_weights")
            if self._prepared:
                await self._call_hook("checkpoint_restore")
            if weights is not None:
                await self._engine.wake_up(["kv_cache"])
            self.weights, self._prepared = None, False

    async def _call_hook(self, name: str) -> None:
        hook = getattr(self._engine, name, None)
        if hook is not None:
            await hook()


def can_sleep(engine: Any) -> bool:
    """Say whether the engine was started with --enable-sleep-mode."""
    config = getattr(getattr(engine, "vllm_config", None), "model_config", None)
    return bool(getattr(config, "enable_sleep_mode", False))
