"""A real vLLM engine on the CPU, started once for a module by `cria run --detach`, ended by PID."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cria.demo import ENVIRONMENT, make_model, serve_command
from cria.engine import discover
from cria.engine.stop import stop


class RunningEngine(msgspec.Struct):
    """A started engine; `pid` follows it through restores."""

    pid: int
    url: str
    place: Path
    ranks: int

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


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


@contextlib.contextmanager
def serving(place: Path, ranks: int, serve: Callable[[Path], list[str]]) -> Iterator[RunningEngine]:
    """An engine started by `cria run` with the command that `serve` makes for the tiny model."""
    model = make_model(place)
    words = ["run", "--detach", "--json", "--quiet", "--log", place / "engine.log", "--"]
    started = command(*words, *serve(model))
    assert started.returncode == 0, started.stdout + started.stderr
    facts = json.loads(started.stdout)
    running = RunningEngine(pid=facts["pid"], url=facts["url"], place=place, ranks=ranks)
    try:
        yield running
    finally:
        with contextlib.suppress(Exception):
            if discover.is_engine(running.pid):
                stop(running.pid, seconds=5)
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL)


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEngine]:
    ranks: int = request.param
    place = tmp_path_factory.mktemp(f"ranks-{ranks}")
    with serving(place, ranks, lambda model: serve_command(model, "auto", ranks)) as running:
        yield running
