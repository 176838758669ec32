"""The commands of the control socket: pause an engine, drop its caches, put it to sleep, resume it."""

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

# What happens to requests in flight, in cria's words and in vLLM's.
MODES = {"keep": "keep", "drain": "wait", "abort": "abort"}
# The client that paused an engine may die before it resumes the engine. So a pause is a lease: an engine that nobody
# resumes goes on by itself after so many seconds. So does one that was restored without cria.
LEASE_SECONDS = 60.0
LONGEST_LEASE_SECONDS = 600.0
BACK_OFF_SECONDS = 2.0
Answer = TypeVar("Answer")
log = logging.getLogger("vllm.cria_agent")


class Engine(Sleeper, Protocol):
    """The part of vLLM's EngineClient that is used here."""

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None: ...
    async def resume_generation(self) -> None: ...
    async def is_paused(self) -> bool: ...
    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()
    ) -> list[dict[str, Any]]: ...


class Commands:
    """Carries out commands, each within its deadline. A pause that somebody else began stays theirs."""

    def __init__(self, engine: Engine, lease_seconds: float = LEASE_SECONDS) -> None:
        self._engine = engine
        self._sleep = Sleep(engine)
        self._lease_seconds = lease_seconds
        self._lease: asyncio.TimerHandle | None = None
        self._paused_by_cria = False
        self._unfinished: set[asyncio.Future[Any]] = set()
        self._pausing: asyncio.Future[None] | None = None
        self._commands: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "status": self.status,
            "pause": self.pause,
            "quiesce": self.quiesce,
            "sleep": self.sleep,
            "renew": self.renew,
            "groups": self.groups,
            "resume": self.resume,
        }

    async def run(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out a command and return its answer. Raises CommandFailed, whatever went wrong."""
        method = self._commands.get(command)
        if method is None:
            # Clients recognize an older agent by "no such command".
            raise CommandFailed(
                f"no such command: {command}; the commands are {', '.join(self._commands)}"
            )
        try:
            return await method(**arguments)
        except CommandFailed:
            raise
        except Exception as error:  # vLLM raises Exception itself for what fails in the engine core
            raise CommandFailed(f"{command} failed: {type(error).__name__}: {error}") from error

    async def status(self, seconds: float = 10.0) -> dict[str, Any]:
        """Say whether the engine is paused, and whether by cria."""
        paused = await self._within(
            seconds, self._engine.is_paused(), "did not say whether it is paused"
        )
        return {"paused": paused, "by_cria": self._paused_by_cria}

    async def pause(self, inflight: str = "keep", seconds: float = 60.0) -> dict[str, Any]:
        """Stop scheduling and empty every cache; requests in flight are kept, drained or aborted.

        Kept requests lose their KV blocks and are computed again after the resume, to the same tokens.
        """
        if inflight not in MODES:
            raise CommandFailed(f"no such way with requests in flight: {inflight}")
        self._paused_by_cria = self._paused_by_cria or not await self._within(
            min(seconds, 10.0), self._engine.is_paused(), "did not answer"
        )
        self._start_lease(seconds + self._lease_seconds)
        self._pausing = asyncio.ensure_future(
            self._engine.pause_generation(mode=MODES[inflight], clear_cache=True)
        )
        try:
            await self._within(seconds, self._pausing, f"did not pause ({inflight})")
        except BaseException:
            self._resume_soon()
            raise
        self._start_lease(self._lease_seconds)
        return {"paused": True, "by_cria": self._paused_by_cria}

    async def quiesce(self, seconds: float = 30.0) -> dict[str, Any]:
        """Let every worker of a paused engine reach a barrier with the others and drop its KV cache."""
        if not await self._within(seconds, self._engine.is_paused(), "did not answer"):
            raise CommandFailed("the engine is not paused: its KV cache is in use")
        self._start_lease(seconds + self._lease_seconds)
        # No timeout goes to vLLM's workers: vLLM stops reading at a timeout, and the next call reads the late
        # answers of this one. The deadline is kept here, and the call is left to end when it can.
        # The ranks wait for each other a little longer, so that one sees from outside for which they wait.
        arguments = (secrets.token_hex(8), seconds + 2.0)
        call = call_workers(self._engine, "cria_quiesce", *arguments)
        cores = await self._within(seconds, call, "has a worker that does not answer")
        workers = [(core, worker) for core, answers in enumerate(cores) for worker in answers]
        errors = [f"core {c} rank {w['rank']}: {w['error']}" for c, w in workers if w["error"]]
        if errors:
            raise CommandFailed("\n".join(errors))
        await self._back_off_cores()
        free_heap()
        self._start_lease(self._lease_seconds)
        return {
            "workers": len(workers),
            "groups": sum(worker["groups"] for _, worker in workers),
            "dropped_bytes": sum(worker["dropped_bytes"] for _, worker in workers),
            "stores": sorted({path for _, worker in workers for path in worker["stores"]}),
        }

    async def sleep(self, weights: str = "keep", seconds: float = 60.0) -> dict[str, Any]:
        """Free the GPU memory that vLLM can fill again. Only where the pause is cria's; resume() wakes the engine up."""
        if weights not in LEVELS:
            raise CommandFailed(f"no such way with weights: {weights}")
        if not self._paused_by_cria:
            raise CommandFailed(
                "cria has not paused the engine: it stays awake, or as somebody else left it"
            )
        self._start_lease(seconds + self._lease_seconds)
        await self._within(seconds, self._sleep.fall_asleep(weights), "did not fall asleep")
        self._start_lease(self._lease_seconds)
        return {"weights": self._sleep.weights}

    async def renew(self, lease: float, seconds: float = 10.0) -> dict[str, Any]:  # noqa: ARG002
        """Let the lease of cria's pause end `lease` seconds from now."""
        if not 0 < lease <= LONGEST_LEASE_SECONDS:
            raise CommandFailed(f"a lease is at most {LONGEST_LEASE_SECONDS:g} s, not {lease:g} s")
        if not self._paused_by_cria:
            raise CommandFailed(
                "nothing to renew: cria has not paused the engine, or it has gone on"
            )
        self._start_lease(lease)
        return {"lease_seconds": lease}

    async def groups(self, seconds: float = 10.0) -> dict[str, Any]:
        """Return the process groups of torch.distributed, as each worker names them."""
        call = call_workers(self._engine, "cria_groups")
        cores = await self._within(seconds, call, "has a worker that does not answer")
        return {"ranks": [groups for answers in cores for groups in answers]}

    async def resume(self, seconds: float = 10.0) -> dict[str, Any]:
        """Resume an engine that cria has paused; one that somebody else has paused stays paused."""
        by_cria, self._paused_by_cria = self._paused_by_cria, False
        self._drop_lease()
        if by_cria:
            await self._within(seconds, self._wake_up_and_resume(), "did not go on")
        return {"resumed": by_cria}

    async def _within(self, seconds: float, call: Awaitable[Answer], trouble: str) -> Answer:
        """Await a call for at most `seconds`. It is not cancelled then, as vLLM goes on to deliver its answer."""
        future = asyncio.ensure_future(call)
        self._keep(future)
        done, _ = await asyncio.wait({future}, timeout=seconds)
        if not done:
            raise CommandFailed(f"the engine {trouble} within {seconds:g} s")
        return future.result()

    def _keep(self, future: asyncio.Future[Any]) -> None:
        """Hold a reference until the future is done: asyncio itself holds none."""
        self._unfinished.add(future)
        future.add_done_callback(self._finished)

    def _finished(self, future: asyncio.Future[Any]) -> None:
        self._unfinished.discard(future)
        if not future.cancelled():
            future.exception()  # without a look at it asyncio logs one that nobody awaits any more

    async def _back_off_cores(self) -> None:
        """Let the engine cores back off too when they wake up; a core that cannot spins, as vLLM always does."""
        try:
            call = call_cores(self._engine, "cria_back_off")
            await self._within(BACK_OFF_SECONDS, call, "has a core that does not answer")
        except Exception as error:  # noqa: BLE001 - see above
            log.info("an engine core will spin when it wakes up: %s", error)

    async def _wake_up_and_resume(self) -> None:
        """Wake up the engine and resume it, as one task that goes on when its client stops waiting.

        A failure is tried again when the lease ends. A pause that was given up may still come true: vLLM sends
        it late, and does not always resume an engine that drains. Then the engine is resumed once more.
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
            self._paused_by_cria = True
            self._start_lease(self._lease_seconds)
            raise
        if late is not None:
            late.add_done_callback(self._resume_late_pause)

    def _resume_late_pause(self, late: asyncio.Future[None]) -> None:
        if not self._paused_by_cria and not late.cancelled():
            self._run_soon(self._engine.resume_generation())

    def _start_lease(self, seconds: float) -> None:
        self._drop_lease()
        self._lease = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _drop_lease(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None

    def _expire(self) -> None:
        if self._paused_by_cria:
            log.warning("nobody resumed the engine: it goes on by itself")
            self._resume_soon()

    def _resume_soon(self) -> None:
        """Resume the engine, without waiting for it: an engine that hangs goes on when it no longer does."""
        self._drop_lease()
        if self._paused_by_cria:
            self._paused_by_cria = False
            self._run_soon(self._wake_up_and_resume())

    def _run_soon(self, call: Awaitable[None]) -> None:
        self._keep(asyncio.ensure_future(call))


async def call_workers(engine: Any, method: str, *args: Any) -> list[list[Any]]:
    """Call a method of every worker and return the answers, a list for each engine core.

    With data parallelism, collective_rpc itself returns the answers of the first core only (vLLM 0.32,
    DPLBAsyncMPClient.call_utility_async).
    """
    call_all = getattr(getattr(engine, "engine_core", None), "call_utility_all_async", None)
    if call_all is None:
        return [await engine.collective_rpc(method, None, args)]
    answers: list[list[Any]] = await call_all("collective_rpc", method, None, args, None)
    return answers


async def call_cores(engine: Any, method: str) -> None:
    """Call a method of every engine core, where vLLM has a way to."""
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
