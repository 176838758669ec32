"""Real vLLM engines on the CPU: started cold once for each number of ranks, for all other tests restored."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cria.demo import ENVIRONMENT, make_model, serve_command
from cria.engine.handle import stop
from cria.engine.inventory import discovery

# Tokens of a request that is to be in flight whenever a dump comes to it; the tiny model takes 2048.
LONG = 2000


class RunningEngine(msgspec.Struct):
    """A running engine; `pid` follows it through restores."""

    pid: int
    url: str
    place: Path
    ranks: int

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The story before the rest of this directory: of its engines comes what the others restore."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent == here and item.path.name != "test_story.py")


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run cria as a user would; environment and working directory are the test's own."""
    return subprocess.run(
        [sys.executable, "-m", "cria", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT | dict(os.environ),
    )


def answer(*words: object) -> Any:
    """The JSON document of a command that must succeed."""
    done = command(*words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def serve(model: Path, ranks: int) -> list[str]:
    """The command of the demo, for long requests."""
    return [*serve_command(model, "auto", ranks), "--max-model-len", "2048"]


@contextlib.contextmanager
def serving(place: Path, ranks: int, words: Sequence[str]) -> Iterator[RunningEngine]:
    """An engine started cold by `cria run --detach` with the command `words`."""
    run = ["run", "--detach", "--json", "--quiet", "--log", place / "engine.log", "--", *words]
    started = command(*run)
    assert started.returncode == 0, started.stdout + started.stderr
    with ended_at_last(json.loads(started.stdout), place, ranks) as running:
        yield running


@contextlib.contextmanager
def restored(checkpoint: Path, place: Path, ranks: int) -> Iterator[RunningEngine]:
    """An engine restored from `checkpoint`, which is used and not changed."""
    facts = answer("restore", checkpoint, "--ports", "auto")
    with ended_at_last(facts, place, ranks) as running:
        yield running


@contextlib.contextmanager
def ended_at_last(facts: dict[str, Any], place: Path, ranks: int) -> Iterator[RunningEngine]:
    """The engine that a command has brought up, ended by PID whatever happens."""
    running = RunningEngine(pid=facts["pid"], url=facts["url"], place=place, ranks=ranks)
    try:
        yield running
    finally:
        with contextlib.suppress(Exception):
            if discovery.is_engine_root(running.pid):
                stop(running.pid, seconds=5)
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, the same for all engines."""
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def checkpoints() -> dict[int, Path]:
    """By number of ranks, what engines are restored from; the story adds its own."""
    return {}


@pytest.fixture(scope="session")
def warm(
    model: Path, checkpoints: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The checkpoint of an engine with so many ranks: that of the story, else made for who asks first."""

    def checkpoint(ranks: int) -> Path:
        if ranks not in checkpoints:
            place = tmp_path_factory.mktemp(f"warm-{ranks}")
            with serving(place, ranks, serve(model, ranks)) as engine:
                answer("dump", engine.pid, "-o", place / "checkpoint")
            checkpoints[ranks] = place / "checkpoint"
        return checkpoints[ranks]

    return checkpoint


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    warm: Callable[[int], Path],
) -> Iterator[RunningEngine]:
    """An engine of the module's own, restored."""
    ranks: int = request.param
    with restored(warm(ranks), tmp_path_factory.mktemp("restored"), ranks) as running:
        yield running
