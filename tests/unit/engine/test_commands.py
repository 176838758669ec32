"""What the part of cria inside an engine does on each command, with an engine of straw."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cria_agent.commands import Commands
from cria_agent.control_socket import CommandFailed

Told = list[tuple[str, Any]]


class StrawEngine:
    """Records what it is told; `hang` names a call that never returns, `fail` one that raises."""

    def __init__(self, *, paused: bool = False, hang: str = "", fail: str = "") -> None:
        self.paused, self.hang, self.fail = paused, hang, fail
        self.told: Told = []
        self.engine_core: Any = None
        self.workers = [
            {"rank": 0, "groups": 5, "dropped_bytes": 4096, "error": None, "stores": ["/tmp/s"]}
        ]

    async def _do(self, call: str, words: Any = None) -> None:
        self.told.append((call, words))
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
        return [call for call, _ in self.told]


def play(engine: StrawEngine, scene: Callable[[Commands], Awaitable[Any]], **options: Any) -> Any:
    async def in_a_loop() -> Any:
        answer = await scene(Commands(engine, **options))
        await asyncio.sleep(0.02)
        return answer

    return asyncio.run(in_a_loop())


@pytest.mark.parametrize(
    ("inflight", "mode"), [("keep", "keep"), ("drain", "wait"), ("abort", "abort")]
)
def test_a_pause_empties_the_caches_whatever_becomes_of_the_requests(
    inflight: str, mode: str
) -> None:
    engine = StrawEngine()

    play(engine, lambda commands: commands.run("pause", {"inflight": inflight}))

    assert ("pause", (mode, True)) in engine.told


def test_a_pause_then_a_resume_leaves_it_running() -> None:
    engine = StrawEngine()

    async def scene(commands: Commands) -> dict[str, Any]:
        await commands.run("pause", {})
        return await commands.run("resume", {})

    assert play(engine, scene) == {"resumed": True}
    assert engine.calls == ["pause", "resume"]


def test_resuming_twice_resumes_once() -> None:
    engine = StrawEngine()

    async def scene(commands: Commands) -> None:
        for command in ("pause", "resume", "resume"):
            await commands.run(command, {})

    play(engine, scene)

    assert engine.calls == ["pause", "resume"]


def test_an_engine_that_somebody_else_had_paused_stays_paused() -> None:
    engine = StrawEngine(paused=True)

    async def scene(commands: Commands) -> dict[str, Any]:
        await commands.run("pause", {})
        return await commands.run("resume", {})

    assert play(engine, scene) == {"resumed": False}
    assert "resume" not in engine.calls


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"hang": "pause"}, "did not pause (drain) within 0.01 s"),
        ({"fail": "pause"}, "pause failed: RuntimeError: no KV connector"),
    ],
)
def test_after_a_pause_that_hangs_or_fails_it_is_told_to_go_on(
    trouble: dict[str, str], words: str
) -> None:
    engine = StrawEngine(**trouble)

    async def scene(commands: Commands) -> str:
        try:
            await commands.run("pause", {"inflight": "drain", "seconds": 0.01})
        except CommandFailed as failed:
            return str(failed)
        return ""

    assert words in play(engine, scene)
    assert engine.calls == ["pause", "resume"]


def test_when_nobody_resumes_it_goes_on_by_itself() -> None:
    engine = StrawEngine()

    async def scene(commands: Commands) -> None:
        await commands.run("pause", {})
        await asyncio.sleep(0.1)

    play(engine, scene, lease_seconds=0.05)

    assert engine.calls == ["pause", "resume"]


def test_a_lease_that_was_used_up_does_not_resume_again() -> None:
    engine = StrawEngine()

    async def scene(commands: Commands) -> None:
        await commands.run("pause", {})
        await commands.run("resume", {})
        await asyncio.sleep(0.1)

    play(engine, scene, lease_seconds=0.05)

    assert engine.calls == ["pause", "resume"]


def test_the_memory_of_an_engine_that_runs_is_not_dropped() -> None:
    engine = StrawEngine()

    with pytest.raises(CommandFailed, match="in use"):
        play(engine, lambda commands: commands.run("quiesce", {}))
    assert engine.calls == []


def test_the_workers_are_called_without_a_timeout_and_summed_up() -> None:
    """A timeout in the engine core would leave late answers for the next call to read."""
    engine = StrawEngine(paused=True)
    engine.workers *= 2

    answer = play(engine, lambda commands: commands.run("quiesce", {"seconds": 8.0}))

    assert answer == {"workers": 2, "groups": 10, "dropped_bytes": 8192, "stores": ["/tmp/s"]}
    ((call, (timeout, (token, seconds))),) = engine.told
    assert (call, timeout, seconds) == ("cria_quiesce", None, 10.0)
    play(engine, lambda commands: commands.run("quiesce", {"seconds": 8.0}))
    assert token not in str(engine.told[-1]), "each roll call has a token of its own"


def test_a_rank_that_did_not_come_is_named() -> None:
    engine = StrawEngine(paused=True)
    engine.workers = [{"rank": 0, "groups": 0, "dropped_bytes": 0, "error": "Ranks 1 failed"}]

    with pytest.raises(CommandFailed, match="core 0 rank 0: Ranks 1 failed"):
        play(engine, lambda commands: commands.run("quiesce", {}))


class SeveralCores:
    """vLLM's client of several engine cores, as far as it is used; the second has a rank in trouble."""

    def __init__(self, *errors: str | None, napping: bool = True) -> None:
        self.errors = errors
        self.napping = napping
        self.told: list[str] = []

    async def call_utility_all_async(self, utility: str, *words: Any) -> list[list[dict[str, Any]]]:
        self.told.append(utility)
        if utility == "cria_back_off":
            if not self.napping:
                raise AttributeError("an engine core of another vLLM")
            return []
        method, timeout, (_token, seconds), _ = words
        assert (utility, method, timeout, seconds) == ("collective_rpc", "cria_quiesce", None, 10.0)
        one = {"rank": 0, "groups": 1, "dropped_bytes": 4096, "stores": []}
        return [[one | {"error": error}] for error in self.errors]


def test_the_workers_of_every_engine_core_are_asked_and_heard() -> None:
    """vLLM hands on what the first says: a worker of another could fail unheard."""
    engine = StrawEngine(paused=True)
    engine.engine_core = SeveralCores(None, None)
    quiesce = lambda commands: commands.run("quiesce", {"seconds": 8.0})  # noqa: E731

    assert play(engine, quiesce) == {"workers": 2, "groups": 2, "dropped_bytes": 8192, "stores": []}

    engine.engine_core = SeveralCores(None, "no memory")
    with pytest.raises(CommandFailed, match="core 1 rank 0: no memory"):
        play(engine, quiesce)


@pytest.mark.parametrize("napping", [True, False])
def test_the_cores_are_told_to_nap_and_one_that_cannot_does_no_harm(napping: bool) -> None:
    engine = StrawEngine(paused=True)
    engine.engine_core = SeveralCores(None, None, napping=napping)

    answer = play(engine, lambda commands: commands.run("quiesce", {"seconds": 8.0}))

    assert answer["workers"] == 2
    assert engine.engine_core.told == ["collective_rpc", "cria_back_off"]


def test_a_worker_that_never_answers_is_given_up_at_the_deadline() -> None:
    engine = StrawEngine(paused=True, hang="cria_quiesce")

    with pytest.raises(CommandFailed, match="does not answer within"):
        play(engine, lambda commands: commands.run("quiesce", {"seconds": 0.01}))


@pytest.mark.parametrize(
    ("command", "words"),
    [("fly", {}), ("pause", {"inflight": "burn"}), ("pause", {"wings": 2}), ("_start_lease", {})],
)
def test_nonsense_is_refused_and_touches_nothing(command: str, words: dict[str, Any]) -> None:
    engine = StrawEngine()

    with pytest.raises(CommandFailed):
        play(engine, lambda commands: commands.run(command, words))
    assert engine.calls == []


def test_a_renewed_lease_counts_from_then_on() -> None:
    engine = StrawEngine()

    async def scene(commands: Commands) -> list[bool]:
        await commands.run("pause", {})
        await commands.run("renew", {"lease": 0.3})
        await asyncio.sleep(0.1)
        before = engine.paused
        await asyncio.sleep(0.4)
        return [before, engine.paused]

    assert play(engine, scene, lease_seconds=0.05) == [True, False]


@pytest.mark.parametrize(
    ("paused", "lease", "why"), [(False, 10, "nothing to renew"), (True, 601, "at most 600 s")]
)
def test_a_lease_that_cannot_be_is_refused(paused: bool, lease: float, why: str) -> None:
    async def scene(commands: Commands) -> None:
        if paused:
            await commands.run("pause", {})
        await commands.run("renew", {"lease": lease})

    with pytest.raises(CommandFailed, match=why):
        play(StrawEngine(), scene)


class LateEngine(StrawEngine):
    """One whose pause hangs until `released`; until then it does not let go, where `refuses` says so."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.released = asyncio.Event()
        self.refuses = refuses

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.told.append(("asked to pause", mode))
        await self.released.wait()
        self.paused = True

    async def resume_generation(self) -> None:
        self.told.append(("resume", None))
        if self.refuses and not self.released.is_set():
            raise RuntimeError("data parallel pause in progress")
        self.paused = False


@pytest.mark.parametrize("refuses", [False, True])
def test_a_pause_that_was_given_up_and_comes_true_later_is_taken_back(refuses: bool) -> None:
    async def scene(commands: Commands) -> None:
        with pytest.raises(CommandFailed, match="did not pause"):
            await commands.run("pause", {"seconds": 0.01})
        await asyncio.sleep(0.01)
        engine.released.set()

    engine = LateEngine(refuses=refuses)
    play(engine, scene)

    assert engine.calls == ["asked to pause", "resume", "resume"]
    assert not engine.paused


def test_a_resume_that_fails_is_tried_again_when_the_lease_ends() -> None:
    engine = StrawEngine(fail="resume")

    async def scene(commands: Commands) -> None:
        await commands.run("pause", {})
        with pytest.raises(CommandFailed, match="no KV connector"):
            await commands.run("resume", {})
        engine.fail = ""
        await asyncio.sleep(0.05)

    play(engine, scene, lease_seconds=0.02)

    assert engine.calls == ["pause", "resume", "resume"]
