"""Real vLLM engines on the CPU, started cold once for each number of ranks and restored for all other tests."""

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

# Tokens of a request that is in flight when a dump begins; the tiny model takes 2048.
LONG = 2000


class RunningEngine(msgspec.Struct):
    """A running engine; `pid` follows it through restores."""

    pid: int
    url: str
    directory: Path
    ranks: int

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run test_story.py first: the other tests restore the checkpoints of its engines."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent == here and item.path.name != "test_story.py")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run cria as a user would; environment and working directory are the test's own."""
    return subprocess.run(
        [sys.executable, "-m", "cria", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT | dict(os.environ),
    )


def answer(*arguments: object) -> Any:
    """Return the JSON document of a command, which must succeed."""
    done = command(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def serve(model: Path, ranks: int) -> list[str]:
    """Return the command of the demo, for longer requests."""
    return [*serve_command(model, "auto", ranks), "--max-model-len", "2048"]


@contextlib.contextmanager
def serving(directory: Path, ranks: int, engine_command: Sequence[str]) -> Iterator[RunningEngine]:
    """Yield an engine that `cria run --detach` starts cold with a command."""
    options = ["--detach", "--json", "--quiet", "--log", directory / "engine.log"]
    started = command("run", *options, "--", *engine_command)
    assert started.returncode == 0, started.stdout + started.stderr
    with ended_at_last(json.loads(started.stdout), directory, ranks) as running:
        yield running


@contextlib.contextmanager
def restored(checkpoint: Path, directory: Path, ranks: int) -> Iterator[RunningEngine]:
    """Yield an engine restored from `checkpoint`, which stays as it is."""
    facts = answer("restore", checkpoint, "--ports", "auto")
    with ended_at_last(facts, directory, ranks) as running:
        yield running


@contextlib.contextmanager
def ended_at_last(facts: dict[str, Any], directory: Path, ranks: int) -> Iterator[RunningEngine]:
    """Yield the engine that a command has started or restored, and end it by its PID whatever happens."""
    running = RunningEngine(pid=facts["pid"], url=facts["url"], directory=directory, ranks=ranks)
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
    """The checkpoints to restore engines from, by number of ranks; test_story.py adds those of its engines."""
    return {}


@pytest.fixture(scope="session")
def warm(
    model: Path, checkpoints: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Return the checkpoint of an engine with a number of ranks: that of test_story.py, else a new one."""

    def checkpoint(ranks: int) -> Path:
        if ranks not in checkpoints:
            directory = tmp_path_factory.mktemp(f"warm-{ranks}")
            with serving(directory, ranks, serve(model, ranks)) as engine:
                answer("dump", engine.pid, "-o", directory / "checkpoint")
            checkpoints[ranks] = directory / "checkpoint"
        return checkpoints[ranks]

    return checkpoint


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    warm: Callable[[int], Path],
) -> Iterator[RunningEngine]:
    """A restored engine, one for each module."""
    ranks: int = request.param
    with restored(warm(ranks), tmp_path_factory.mktemp("restored"), ranks) as running:
        yield running
