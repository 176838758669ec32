"""An engine with GPUs is put to sleep for its dump, and wakes up in the right order."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cria_agent.commands import Commands
from cria_agent.control_socket import CommandFailed, serve

from cria.engine.control.quiesce import QuiesceSession
from cria.events import Event
from cria.model.inventory import Holder, Inventory, Role, UnixSocket

AWAKE_AGAIN = ["wake_up kv_cache", "resume"]


class FakeEngine:
    """A fake AsyncLLM that records its calls; `fail` names a call that raises."""

    def __init__(self, *, can_sleep: bool = True, paused: bool = False, fail: str = "") -> None:
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(enable_sleep_mode=can_sleep)
        )
        self.paused, self.fail = paused, fail
        self.calls: list[str] = []

    def _do(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fail:
            raise RuntimeError("out of memory")

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.paused = True

    async def resume_generation(self) -> None:
        self.paused = False
        self._do("resume")

    async def is_paused(self) -> bool:
        return self.paused

    async def checkpoint_prepare(self) -> None:
        self._do("checkpoint_prepare")

    async def checkpoint_restore(self) -> None:
        self._do("checkpoint_restore")

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self._do(f"sleep {level} {mode}")

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        self._do(f"wake_up {' '.join(tags or [])}")
        return True

    async def collective_rpc(self, method: str, *_: Any) -> list[Any]:
        self._do(method)
        return []


def run(engine: FakeEngine, *commands: tuple[str, dict[str, Any]], **options: Any) -> list[Any]:
    async def scenario() -> list[Any]:
        agent = Commands(engine, **options)
        answers = [await agent.run(name, dict(arguments)) for name, arguments in commands]
        await asyncio.sleep(0.1)
        return answers

    return asyncio.run(scenario())


def test_kept_weights_go_to_host_memory_and_come_back() -> None:
    engine = FakeEngine()

    answers = run(engine, ("pause", {}), ("sleep", {"weights": "keep"}), ("resume", {}))

    assert answers[1] == {"weights": "keep"}
    assert engine.calls == [
        "checkpoint_prepare", "sleep 1 keep", "wake_up weights", "checkpoint_restore", *AWAKE_AGAIN
    ]  # fmt: skip


def test_dropped_weights_are_read_again_before_the_kv_cache_is_made() -> None:
    engine = FakeEngine()

    run(engine, ("pause", {}), ("sleep", {"weights": "drop"}), ("resume", {}))

    assert engine.calls[1:] == [
        "sleep 2 keep", "wake_up weights", "reload_weights", "checkpoint_restore", *AWAKE_AGAIN
    ]  # fmt: skip


def test_an_engine_without_sleep_mode_stays_awake_and_reports_no_weights() -> None:
    engine = FakeEngine(can_sleep=False)

    answers = run(engine, ("pause", {}), ("sleep", {}), ("resume", {}))

    assert answers[1] == {"weights": None}
    assert engine.calls == ["checkpoint_prepare", "checkpoint_restore", "resume"]


def test_when_the_lease_ends_the_engine_wakes_up_before_it_computes() -> None:
    engine = FakeEngine()

    run(engine, ("pause", {}), ("sleep", {}), lease_seconds=0.02)

    assert engine.calls[-4:] == ["wake_up weights", "checkpoint_restore", *AWAKE_AGAIN]


def test_an_engine_that_cannot_fall_asleep_is_woken_up_all_the_same() -> None:
    """Some ranks may have fallen asleep, and vLLM does nothing with those that have not."""
    engine = FakeEngine(fail="sleep 1 keep")

    async def scenario() -> None:
        agent = Commands(engine)
        await agent.run("pause", {})
        with pytest.raises(CommandFailed, match="out of memory"):
            await agent.run("sleep", {})
        await agent.run("resume", {})

    asyncio.run(scenario())
    assert engine.calls[-4:] == ["wake_up weights", "checkpoint_restore", *AWAKE_AGAIN]


def test_an_engine_that_cannot_wake_up_is_not_resumed() -> None:
    engine = FakeEngine(fail="wake_up kv_cache")

    with pytest.raises(CommandFailed, match="out of memory"):
        run(engine, ("pause", {}), ("sleep", {}), ("resume", {}))
    assert "resume" not in engine.calls


@pytest.mark.parametrize(
    ("paused", "weights", "message"),
    [(True, "keep", "not paused the engine"), (False, "melt", "no such way with weights")],
)
def test_sleep_is_refused_in_a_pause_of_somebody_else_and_with_unknown_weights(
    paused: bool, weights: str, message: str
) -> None:
    engine = FakeEngine(paused=paused)

    with pytest.raises(CommandFailed, match=message):
        run(engine, ("pause", {}), ("sleep", {"weights": weights}))
    assert not any(call.startswith("sleep") for call in engine.calls)


MakeSession = Callable[[FakeEngine], tuple[QuiesceSession, list[Event]]]


@pytest.fixture
def make_session(tmp_path: Path) -> Iterator[MakeSession]:
    """Return a quiesce session with a fake engine, through a real control socket."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def quiesce_session(engine: FakeEngine) -> tuple[QuiesceSession, list[Event]]:
        path = str(tmp_path / "cria.sock")
        asyncio.run_coroutine_threadsafe(serve(Commands(engine), path), loop).result(5)
        listener = UnixSocket(
            kind="stream",
            state="LISTEN",
            path=path,
            inode=1,
            holders=(Holder(pid=os.getpid(), fd=3),),
            role=Role(name="cria control", confidence="certain"),
        )
        events: list[Event] = []
        inventory = Inventory(taken=0.0, is_engine=True, processes=(), unix_sockets=(listener,))
        return QuiesceSession(inventory, "keep", seconds=5, listener=events.append), events

    yield quiesce_session
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@pytest.mark.parametrize("can_sleep", [True, False])
def test_the_manifest_says_where_the_weights_are(
    can_sleep: bool, make_session: MakeSession
) -> None:
    engine = FakeEngine(can_sleep=can_sleep)
    session, events = make_session(engine)

    session.pause()
    session.drop_caches()
    session.sleep("drop", lease=1000)

    assert session.quiesced is not None
    assert session.quiesced.weights == ("drop" if can_sleep else None)
    assert ["--enable-sleep-mode" in str(event) for event in events] == (
        [] if can_sleep else [True]
    )
    session.resume()
    assert engine.calls[-1] == "resume"


def test_an_engine_that_somebody_else_put_to_sleep_stays_asleep(make_session: MakeSession) -> None:
    engine = FakeEngine(paused=True)
    session, _ = make_session(engine)

    session.pause()
    session.drop_caches()
    session.sleep("keep", lease=10)
    session.resume()

    assert "checkpoint_prepare" not in engine.calls
    assert engine.paused
