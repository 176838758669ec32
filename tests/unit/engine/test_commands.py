"""The agent carries out each command of its control socket, here with a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cria_agent.commands import Commands
from cria_agent.control_socket import CommandFailed

Calls = list[tuple[str, Any]]


class FakeEngine:
    """An engine that records its calls; `hang` names a call that never returns, `fail` one that raises."""

    def __init__(self, *, paused: bool = False, hang: str = "", fail: str = "") -> None:
        self.paused, self.hang, self.fail = paused, hang, fail
        self.received: Calls = []
        self.engine_core: Any = None
        self.workers = [
            {"rank": 0, "groups": 5, "dropped_bytes": 4096, "error": None, "stores": ["/tmp/s"]}
        ]

    async def _do(self, call: str, arguments: Any = None) -> None:
        self.received.append((call, arguments))
        if self.hang == call:
            await asyncio.Event().wait()
        if self.fail == call:
            raise RuntimeError("no KV connector")

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.paused = True
        await self._do("pause", (mode, clear_cache))

    async def resume_generation(self) -> None:
        self.paused = False
        await self._do("resume")

    async def is_paused(self) -> bool:
        return self.paused

    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()
    ) -> list[dict[str, Any]]:
        await self._do(method, (timeout, args))
        return self.workers

    @property
    def calls(self) -> list[str]:
        return [call for call, _ in self.received]


def run(engine: FakeEngine, scenario: Callable[[Commands], Awaitable[Any]], **options: Any) -> Any:
    async def in_a_loop() -> Any:
        answer = await scenario(Commands(engine, **options))
        await asyncio.sleep(0.02)
        return answer

    return asyncio.run(in_a_loop())


@pytest.mark.parametrize(
    ("inflight", "mode"), [("keep", "keep"), ("drain", "wait"), ("abort", "abort")]
)
def test_a_pause_clears_the_caches_in_every_mode(inflight: str, mode: str) -> None:
    engine = FakeEngine()

    run(engine, lambda commands: commands.run("pause", {"inflight": inflight}))

    assert ("pause", (mode, True)) in engine.received


def test_a_pause_and_a_resume_leave_the_engine_running() -> None:
    engine = FakeEngine()

    async def scenario(commands: Commands) -> dict[str, Any]:
        await commands.run("pause", {})
        return await commands.run("resume", {})

    assert run(engine, scenario) == {"resumed": True}
    assert engine.calls == ["pause", "resume"]


def test_resuming_twice_resumes_once() -> None:
    engine = FakeEngine()

    async def scenario(commands: Commands) -> None:
        for command in ("pause", "resume", "resume"):
            await commands.run(command, {})

    run(engine, scenario)

    assert engine.calls == ["pause", "resume"]


def test_an_engine_that_somebody_else_had_paused_stays_paused() -> None:
    engine = FakeEngine(paused=True)

    async def scenario(commands: Commands) -> dict[str, Any]:
        await commands.run("pause", {})
        return await commands.run("resume", {})

    assert run(engine, scenario) == {"resumed": False}
    assert "resume" not in engine.calls


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ({"hang": "pause"}, "did not pause (drain) within 0.01 s"),
        ({"fail": "pause"}, "pause failed: RuntimeError: no KV connector"),
    ],
)
def test_after_a_pause_that_hangs_or_fails_the_engine_is_resumed(
    trouble: dict[str, str], message: str
) -> None:
    engine = FakeEngine(**trouble)

    async def scenario(commands: Commands) -> str:
        try:
            await commands.run("pause", {"inflight": "drain", "seconds": 0.01})
        except CommandFailed as failed:
            return str(failed)
        return ""

    assert message in run(engine, scenario)
    assert engine.calls == ["pause", "resume"]


def test_an_engine_that_nobody_resumes_goes_on_when_its_lease_ends() -> None:
    engine = FakeEngine()

    async def scenario(commands: Commands) -> None:
        await commands.run("pause", {})
        await asyncio.sleep(0.1)

    run(engine, scenario, lease_seconds=0.05)

    assert engine.calls == ["pause", "resume"]


def test_a_lease_does_not_resume_an_engine_that_was_resumed() -> None:
    engine = FakeEngine()

    async def scenario(commands: Commands) -> None:
        await commands.run("pause", {})
        await commands.run("resume", {})
        await asyncio.sleep(0.1)

    run(engine, scenario, lease_seconds=0.05)

    assert engine.calls == ["pause", "resume"]


def test_the_memory_of_a_running_engine_is_not_dropped() -> None:
    engine = FakeEngine()

    with pytest.raises(CommandFailed, match="in use"):
        run(engine, lambda commands: commands.run("quiesce", {}))
    assert engine.calls == []


def test_workers_are_called_without_a_timeout_and_their_reports_are_added_up() -> None:
    """A timeout in the engine core would leave late answers for the next call to read."""
    engine = FakeEngine(paused=True)
    engine.workers *= 2

    answer = run(engine, lambda commands: commands.run("quiesce", {"seconds": 8.0}))

    assert answer == {"workers": 2, "groups": 10, "dropped_bytes": 8192, "stores": ["/tmp/s"]}
    ((call, (timeout, (token, seconds))),) = engine.received
    assert (call, timeout, seconds) == ("cria_quiesce", None, 10.0)
    run(engine, lambda commands: commands.run("quiesce", {"seconds": 8.0}))
    assert token not in str(engine.received[-1]), "each barrier has a token of its own"


def test_the_error_of_a_rank_is_passed_on_with_its_number() -> None:
    engine = FakeEngine(paused=True)
    engine.workers = [{"rank": 0, "groups": 0, "dropped_bytes": 0, "error": "Ranks 1 failed"}]

    with pytest.raises(CommandFailed, match="core 0 rank 0: Ranks 1 failed"):
        run(engine, lambda commands: commands.run("quiesce", {}))


class SeveralCores:
    """vLLM's client of several engine cores, with the error of one worker in each; `backs_off` where cores can."""

    def __init__(self, *errors: str | None, backs_off: bool = True) -> None:
        self.errors = errors
        self.backs_off = backs_off
        self.received: list[str] = []

    async def call_utility_all_async(self, utility: str, *words: Any) -> list[list[dict[str, Any]]]:
        self.received.append(utility)
        if utility == "cria_back_off":
            if not self.backs_off:
                raise AttributeError("an engine core of another vLLM")
            return []
        method, timeout, (_token, seconds), _ = words
        assert (utility, method, timeout, seconds) == ("collective_rpc", "cria_quiesce", None, 10.0)
        one = {"rank": 0, "groups": 1, "dropped_bytes": 4096, "stores": []}
        return [[one | {"error": error}] for error in self.errors]


def test_the_workers_of_every_engine_core_are_called_and_their_errors_raised() -> None:
    """vLLM's collective_rpc returns the answers of the first core only: a failure in another would be missed."""
    engine = FakeEngine(paused=True)
    engine.engine_core = SeveralCores(None, None)
    quiesce = lambda commands: commands.run("quiesce", {"seconds": 8.0})  # noqa: E731

    assert run(engine, quiesce) == {"workers": 2, "groups": 2, "dropped_bytes": 8192, "stores": []}

    engine.engine_core = SeveralCores(None, "no memory")
    with pytest.raises(CommandFailed, match="core 1 rank 0: no memory"):
        run(engine, quiesce)


@pytest.mark.parametrize("backs_off", [True, False])
def test_engine_cores_back_off_and_one_that_cannot_does_no_harm(backs_off: bool) -> None:
    engine = FakeEngine(paused=True)
    engine.engine_core = SeveralCores(None, None, backs_off=backs_off)

    answer = run(engine, lambda commands: commands.run("quiesce", {"seconds": 8.0}))

    assert answer["workers"] == 2
    assert engine.engine_core.received == ["collective_rpc", "cria_back_off"]


def test_a_worker_that_never_answers_fails_the_command_at_its_deadline() -> None:
    engine = FakeEngine(paused=True, hang="cria_quiesce")

    with pytest.raises(CommandFailed, match="does not answer within"):
        run(engine, lambda commands: commands.run("quiesce", {"seconds": 0.01}))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("fly", {}), ("pause", {"inflight": "burn"}), ("pause", {"wings": 2}), ("_start_lease", {})],
)
def test_an_unknown_command_or_argument_is_refused_and_changes_nothing(
    command: str, arguments: dict[str, Any]
) -> None:
    engine = FakeEngine()

    with pytest.raises(CommandFailed):
        run(engine, lambda commands: commands.run(command, arguments))
    assert engine.calls == []


def test_a_renewed_lease_counts_from_the_renewal() -> None:
    engine = FakeEngine()

    async def scenario(commands: Commands) -> list[bool]:
        await commands.run("pause", {})
        await commands.run("renew", {"lease": 0.3})
        await asyncio.sleep(0.1)
        before = engine.paused
        await asyncio.sleep(0.4)
        return [before, engine.paused]

    assert run(engine, scenario, lease_seconds=0.05) == [True, False]


@pytest.mark.parametrize(
    ("paused", "lease", "why"), [(False, 10, "nothing to renew"), (True, 601, "at most 600 s")]
)
def test_a_lease_without_a_pause_or_too_long_is_refused(
    paused: bool, lease: float, why: str
) -> None:
    async def scenario(commands: Commands) -> None:
        if paused:
            await commands.run("pause", {})
        await commands.run("renew", {"lease": lease})

    with pytest.raises(CommandFailed, match=why):
        run(FakeEngine(), scenario)


class LateEngine(FakeEngine):
    """An engine whose pause hangs until `released`; with `refuses` it raises on a resume until then."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.released = asyncio.Event()
        self.refuses = refuses

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.received.append(("pause", mode))
        await self.released.wait()
        self.paused = True

    async def resume_generation(self) -> None:
        self.received.append(("resume", None))
        if self.refuses and not self.released.is_set():
            raise RuntimeError("data parallel pause in progress")
        self.paused = False


@pytest.mark.parametrize("refuses", [False, True])
def test_a_pause_that_comes_true_after_its_deadline_is_undone(refuses: bool) -> None:
    async def scenario(commands: Commands) -> None:
        with pytest.raises(CommandFailed, match="did not pause"):
            await commands.run("pause", {"seconds": 0.01})
        await asyncio.sleep(0.01)
        engine.released.set()

    engine = LateEngine(refuses=refuses)
    run(engine, scenario)

    assert engine.calls == ["pause", "resume", "resume"]
    assert not engine.paused


def test_a_resume_that_fails_is_tried_again_when_the_lease_ends() -> None:
    engine = FakeEngine(fail="resume")

    async def scenario(commands: Commands) -> None:
        await commands.run("pause", {})
        with pytest.raises(CommandFailed, match="no KV connector"):
            await commands.run("resume", {})
        engine.fail = ""
        await asyncio.sleep(0.05)

    run(engine, scenario, lease_seconds=0.02)

    assert engine.calls == ["pause", "resume", "resume"]
