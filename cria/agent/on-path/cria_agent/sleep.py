"""Let vLLM give back what it can make again on a GPU, and wake it up: its sleep, and its hooks for checkpoints."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

# What becomes of the weights, and vLLM's level: in host memory, or read again from the model's files.
LEVELS = {"keep": 1, "drop": 2}


class Sleeper(Protocol):
    """What is used of vLLM's AsyncLLM; its checkpoint_prepare and checkpoint_restore (PR 46877) where it has them."""

    async def sleep(self, level: int = 1, mode: Any = "abort") -> None: ...
    async def wake_up(self, tags: list[str] | None = None) -> Any: ...
    async def collective_rpc(self, method: str) -> Any: ...


class Sleep:
    """One engine's way to sleep and back. `weights` says where they are; None while it is awake."""

    def __init__(self, engine: Sleeper) -> None:
        self._engine = engine
        self._prepared = False
        self._turn = (
            asyncio.Lock()
        )  # whoever gave up waiting for it to fall asleep wakes it up, and not before
        self.weights: str | None = None

    async def fall_asleep(self, weights: str) -> None:
        """Tear down what ranks share outside of NCCL, then free the KV cache, and the weights or not.

        An engine that was started without --enable-sleep-mode has no memory that it could free.
        """
        async with self._turn:
            self._prepared = True
            await self._hook("checkpoint_prepare")
            if can_sleep(self._engine):
                self.weights = weights
                await self._engine.sleep(LEVELS[weights], mode="keep")

    async def wake_up(self) -> None:
        """Everything back on the GPU, the KV cache last: with it vLLM lets requests be computed.

        What was never put to sleep is left alone, so it can be called whatever went wrong before.
        """
        async with self._turn:
            weights = self.weights
            if weights is not None:
                await self._engine.wake_up(["weights"])
            if weights == "drop":
                await self._engine.collective_rpc("reload_weights")
            if self._prepared:
                await self._hook("checkpoint_restore")
            if weights is not None:
                await self._engine.wake_up(["kv_cache"])
            self.weights, self._prepared = None, False

    async def _hook(self, name: str) -> None:
        hook = getattr(self._engine, name, None)
        if hook is not None:
            await hook()


def can_sleep(engine: Any) -> bool:
    """Whether the engine was started with --enable-sleep-mode."""
    config = getattr(getattr(engine, "vllm_config", None), "model_config", None)
    return bool(getattr(config, "enable_sleep_mode", False))
