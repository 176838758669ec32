"""What the control socket can ask of an engine: to stand still, to let go of memory, and to go on."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from cria_agent.control_socket import CommandFailed
from cria_agent.sleep import LEVELS, Sleep, Sleeper

# cria's word for what happens to requests in flight, and vLLM's.
MODES = {"keep": "keep", "drain": "wait", "abort": "abort"}
# Whoever paused may die before it resumes. Then the engine goes on by itself after so many seconds.
LEASE_SECONDS = 60.0
LONGEST_LEASE_SECONDS = 600.0
TELL_SECONDS = 2.0
Answer = TypeVar("Answer")
log = logging.getLogger("vllm.cria_agent")


class Engine(Sleeper, Protocol):
    """What is used of vLLM's EngineClient."""

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None: ...
    async def resume_generation(self) -> None: ...
    async def is_paused(self) -> bool: ...
    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()
    ) -> list[dict[str, Any]]: ...


class Commands:
    """Carries out commands, each within its deadline; knows whether the pause is cria's or somebody else's."""

    def __init__(self, engine: Engine, lease_seconds: float = LEASE_SECONDS) -> None:
        self._engine = engine
        self._sleep = Sleep(engine)
        self._lease_seconds = lease_seconds
        self._lease: asyncio.TimerHandle | None = None
        self._ours = False
        self._unfinished: set[asyncio.Future[Any]] = set()
        self._pausing: asyncio.Future[None] | None = None
        self._known: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "status": self.status,
            "pause": self.pause,
            "quiesce": self.quiesce,
            "sleep": self.sleep,
            "renew": self.renew,
            "groups": self.groups,
            "resume": self.resume,
        }

    async def run(self, command: str, words: dict[str, Any]) -> dict[str, Any]:
        """Raises CommandFailed with the reason, whatever it was: an engine must not die of a command."""
        method = self._known.get(command)
        if method is None:
            raise CommandFailed(f"no such command: {command}; there are {', '.join(self._known)}")
        try:
            return await method(**words)
        except CommandFailed:
            raise
        except Exception as error:  # vLLM raises Exception itself for what fails in the engine core
            raise CommandFailed(f"{command} failed: {type(error).__name__}: {error}") from error

    async def status(self, seconds: float = 10.0) -> dict[str, Any]:
        paused = await self._within(
            seconds, self._engine.is_paused(), "did not say whether it is paused"
        )
        return {"paused": paused, "by_cria": self._ours}

    async def pause(self, inflight: str = "keep", seconds: float = 60.0) -> dict[str, Any]:
        """Stop scheduling and empty every cache; the requests in flight are kept, drained or aborted.

        Kept requests lose their blocks and are computed again after the resume, to the same tokens.
        """
        if inflight not in MODES:
            raise CommandFailed(f"no such way with requests in flight: {inflight}")
        self._ours = self._ours or not await self._within(
            min(seconds, 10.0), self._engine.is_paused(), "did not answer"
        )
        self._renew(seconds + self._lease_seconds)
        still = self._engine.pause_generation(mode=MODES[inflight], clear_cache=True)
        self._pausing = asyncio.ensure_future(still)
        try:
            await self._within(seconds, self._pausing, f"did not stand still ({inflight})")
        except BaseException:
            self._go_on()
            raise
        self._renew(self._lease_seconds)
        return {"paused": True, "by_cria": self._ours}

    async def quiesce(self, seconds: float = 30.0) -> dict[str, Any]:
        """Every worker meets the others at a barrier and drops its KV cache. Only while paused."""
        if not await self._within(seconds, self._engine.is_paused(), "did not answer"):
            raise CommandFailed("the engine is not paused: its KV cache is in use")
        self._renew(seconds + self._lease_seconds)
        # No timeout goes to the engine core: it would leave late answers for the next call to read.
        # The ranks wait for each other a little longer, so that it can be seen from outside for whom.
        words = (secrets.token_hex(8), seconds + 2.0)
        call = every_worker(self._engine, "cria_quiesce", *words)
        cores = await self._within(seconds, call, "has a worker that does not answer")
        workers = [(core, each) for core, answers in enumerate(cores) for each in answers]
        wrong = [f"core {c} rank {w['rank']}: {w['error']}" for c, w in workers if w["error"]]
        if wrong:
            raise CommandFailed("\n".join(wrong))
        await self._back_off_cores()
        free_heap()
        self._renew(self._lease_seconds)
        return {
            "workers": len(workers),
            "groups": sum(each["groups"] for _, each in workers),
            "dropped_bytes": sum(each["dropped_bytes"] for _, each in workers),
            "stores": sorted({path for _, each in workers for path in each["stores"]}),
        }

    async def sleep(self, weights: str = "keep", seconds: float = 60.0) -> dict[str, Any]:
        """Free what can be made again on the GPUs; the resume wakes the engine up. Only while the pause is cria's."""
        if weights not in LEVELS:
            raise CommandFailed(f"no such way with weights: {weights}")
        if not self._ours:
            raise CommandFailed(
                "cria has not paused the engine: it stays awake, or as somebody else left it"
            )
        self._renew(seconds + self._lease_seconds)
        await self._within(seconds, self._sleep.fall_asleep(weights), "did not fall asleep")
        self._renew(self._lease_seconds)
        return {"weights": self._sleep.weights}

    async def renew(self, lease: float, seconds: float = 10.0) -> dict[str, Any]:  # noqa: ARG002
        """Stand still for `lease` seconds from now on, then go on. Only while the pause is cria's."""
        if not 0 < lease <= LONGEST_LEASE_SECONDS:
            raise CommandFailed(f"a lease is at most {LONGEST_LEASE_SECONDS:g} s, not {lease:g} s")
        if not self._ours:
            raise CommandFailed(
                "nothing to renew: cria has not paused the engine, or it has gone on"
            )
        self._renew(lease)
        return {"lease_seconds": lease}

    async def groups(self, seconds: float = 10.0) -> dict[str, Any]:
        """The process groups of torch.distributed, as each worker knows them."""
        call = every_worker(self._engine, "cria_groups")
        cores = await self._within(seconds, call, "has a worker that does not answer")
        return {"ranks": [each for answers in cores for each in answers]}

    async def resume(self, seconds: float = 10.0) -> dict[str, Any]:
        """Go on; an engine that somebody else had paused stays so. Twice is once."""
        ours, self._ours = self._ours, False
        self._drop_lease()
        if ours:
            await self._within(seconds, self._wake_and_go_on(), "did not go on")
        return {"resumed": ours}

    async def _within(self, seconds: float, call: Awaitable[Answer], trouble: str) -> Answer:
        """Await, but not longer. The call itself is not cancelled: vLLM still wants to deliver its answer."""
        future = asyncio.ensure_future(call)
        self._unfinished.add(future)
        future.add_done_callback(self._finished)
        done, _ = await asyncio.wait({future}, timeout=seconds)
        if not done:
            raise CommandFailed(f"the engine {trouble} within {seconds:g} s")
        return future.result()

    def _finished(self, future: asyncio.Future[Any]) -> None:
        self._unfinished.discard(future)
        if not future.cancelled():
            future.exception()  # looked at, else asyncio complains of those that nobody awaits any more

    async def _back_off_cores(self) -> None:
        """The cores too shall not spin when they wake up; one that cannot be told so spins, as it always did."""
        try:
            call = every_core(self._engine, "cria_back_off")
            await self._within(TELL_SECONDS, call, "has a core that does not answer")
        except Exception as error:  # noqa: BLE001 - see above
            log.info("an engine core will spin when it wakes up: %s", error)

    async def _wake_and_go_on(self) -> None:
        """In one piece: whoever waits for it may stop waiting, and half of it would be an engine that hangs.

        What fails is tried again when the lease ends. A pause that was given up may still come true: vLLM
        sends it late, and does not always let an engine go on that drains. Then it is told once more.
        """
        late = self._pausing if self._pausing is not None and not self._pausing.done() else None
        try:
            await self._sleep.wake_up()
            try:
                await self._engine.resume_generation()
            except Exception:
                if late is None or late.done():
                    raise
        except Exception:
            self._ours = True
            self._renew(self._lease_seconds)
            raise
        if late is not None:
            late.add_done_callback(self._go_on_after_all)

    def _go_on_after_all(self, late: asyncio.Future[None]) -> None:
        if not self._ours and not late.cancelled():
            self._carry_on(self._engine.resume_generation())

    def _renew(self, seconds: float) -> None:
        self._drop_lease()
        self._lease = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _drop_lease(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None

    def _expire(self) -> None:
        if self._ours:
            log.warning("nobody resumed the engine: it goes on by itself")
            self._go_on()

    def _go_on(self) -> None:
        """Ask for it and do not wait: an engine that hangs goes on when it no longer does."""
        self._drop_lease()
        if self._ours:
            self._ours = False
            self._carry_on(self._wake_and_go_on())

    def _carry_on(self, call: Awaitable[None]) -> None:
        future = asyncio.ensure_future(call)
        self._unfinished.add(future)
        future.add_done_callback(self._finished)


async def every_worker(engine: Any, method: str, *args: Any) -> list[list[Any]]:
    """What each worker answers, for each engine core; no timeout goes there, see Commands.quiesce.

    With data parallelism collective_rpc itself hands on the answers of the first core only (vLLM 0.32,
    DPLBAsyncMPClient.call_utility_async).
    """
    to_all = getattr(getattr(engine, "engine_core", None), "call_utility_all_async", None)
    if to_all is None:
        return [await engine.collective_rpc(method, None, args)]
    answers: list[list[Any]] = await to_all("collective_rpc", method, None, args, None)
    return answers


async def every_core(engine: Any, method: str) -> None:
    """Call a method of each engine core, where vLLM has a way to."""
    client = getattr(engine, "engine_core", None)
    call = getattr(client, "call_utility_all_async", None) or getattr(
        client, "call_utility_async", None
    )
    if call is not None:
        await call(method)


def free_heap() -> None:
    """Collect garbage, then give what glibc's malloc holds free back to the kernel."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
