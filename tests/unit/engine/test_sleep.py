"""An engine with GPUs is put to sleep for its dump, and wakes up in the right order whoever lets it go on."""

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


class StrawEngine:
    """An AsyncLLM of straw; `fail` names a call that raises."""

    def __init__(self, *, can_sleep: bool = True, paused: bool = False, fail: str = "") -> None:
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(enable_sleep_mode=can_sleep)
        )
        self.paused, self.fail = paused, fail
        self.told: list[str] = []

    def _do(self, call: str) -> None:
        self.told.append(call)
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


def play(engine: StrawEngine, *commands: tuple[str, dict[str, Any]], **options: Any) -> list[Any]:
    async def scene() -> list[Any]:
        inside = Commands(engine, **options)
        answers = [await inside.run(name, dict(words)) for name, words in commands]
        await asyncio.sleep(0.1)
        return answers

    return asyncio.run(scene())


def test_kept_weights_go_to_the_host_and_come_back() -> None:
    engine = StrawEngine()

    answers = play(engine, ("pause", {}), ("sleep", {"weights": "keep"}), ("resume", {}))

    assert answers[1] == {"weights": "keep"}
    assert engine.told == [
        "checkpoint_prepare", "sleep 1 keep", "wake_up weights", "checkpoint_restore", *AWAKE_AGAIN
    ]  # fmt: skip


def test_dropped_weights_are_read_again_before_the_kv_cache_is_made() -> None:
    engine = StrawEngine()

    play(engine, ("pause", {}), ("sleep", {"weights": "drop"}), ("resume", {}))

    assert engine.told[1:] == [
        "sleep 2 keep", "wake_up weights", "reload_weights", "checkpoint_restore", *AWAKE_AGAIN
    ]  # fmt: skip


def test_an_engine_without_sleep_mode_stays_awake_and_says_so() -> None:
    engine = StrawEngine(can_sleep=False)

    answers = play(engine, ("pause", {}), ("sleep", {}), ("resume", {}))

    assert answers[1] == {"weights": None}
    assert engine.told == ["checkpoint_prepare", "checkpoint_restore", "resume"]


def test_when_the_lease_ends_it_wakes_before_it_goes_on() -> None:
    engine = StrawEngine()

    play(engine, ("pause", {}), ("sleep", {}), lease_seconds=0.02)

    assert engine.told[-4:] == ["wake_up weights", "checkpoint_restore", *AWAKE_AGAIN]


def test_one_that_cannot_fall_asleep_is_woken_all_the_same() -> None:
    """vLLM leaves alone what does not sleep, and some ranks may have fallen asleep."""
    engine = StrawEngine(fail="sleep 1 keep")

    async def scene() -> None:
        inside = Commands(engine)
        await inside.run("pause", {})
        with pytest.raises(CommandFailed, match="out of memory"):
            await inside.run("sleep", {})
        await inside.run("resume", {})

    asyncio.run(scene())
    assert engine.told[-4:] == ["wake_up weights", "checkpoint_restore", *AWAKE_AGAIN]


def test_one_that_cannot_wake_up_is_not_told_to_compute() -> None:
    engine = StrawEngine(fail="wake_up kv_cache")

    with pytest.raises(CommandFailed, match="out of memory"):
        play(engine, ("pause", {}), ("sleep", {}), ("resume", {}))
    assert "resume" not in engine.told


@pytest.mark.parametrize(
    ("paused", "weights", "why"),
    [(True, "keep", "not paused the engine"), (False, "melt", "no such way with weights")],
)
def test_what_somebody_else_paused_and_nonsense_are_left_alone(
    paused: bool, weights: str, why: str
) -> None:
    engine = StrawEngine(paused=paused)

    with pytest.raises(CommandFailed, match=why):
        play(engine, ("pause", {}), ("sleep", {"weights": weights}))
    assert not any(call.startswith("sleep") for call in engine.told)


Reach = Callable[[StrawEngine], tuple[QuiesceSession, list[Event]]]


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[Reach]:
    """The still point of an engine of straw, by way of a real control socket."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def still_point(engine: StrawEngine) -> tuple[QuiesceSession, list[Event]]:
        path = str(tmp_path / "cria.sock")
        asyncio.run_coroutine_threadsafe(serve(Commands(engine), path), loop).result(5)
        held = UnixSocket(
            kind="stream",
            state="LISTEN",
            path=path,
            inode=1,
            holders=(Holder(pid=os.getpid(), fd=3),),
            role=Role(name="cria control", confidence="certain"),
        )
        told: list[Event] = []
        inventory = Inventory(taken=0.0, is_engine=True, processes=(), unix_sockets=(held,))
        return QuiesceSession(inventory, "keep", seconds=5, listener=told.append), told

    yield still_point
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@pytest.mark.parametrize("can_sleep", [True, False])
def test_what_became_of_the_weights_is_recorded_for_the_restore(
    can_sleep: bool, reach: Reach
) -> None:
    engine = StrawEngine(can_sleep=can_sleep)
    still, told = reach(engine)

    still.pause()
    still.drop_caches()
    still.sleep("drop", lease=1000)

    assert still.quiesced is not None
    assert still.quiesced.weights == ("drop" if can_sleep else None)
    assert ["--enable-sleep-mode" in str(event) for event in told] == ([] if can_sleep else [True])
    still.resume()
    assert engine.told[-1] == "resume"


def test_an_engine_that_somebody_else_put_to_sleep_is_left_so(reach: Reach) -> None:
    engine = StrawEngine(paused=True)
    still, _ = reach(engine)

    still.pause()
    still.drop_caches()
    still.sleep("keep", lease=10)
    still.resume()

    assert "checkpoint_prepare" not in engine.told
    assert engine.paused
