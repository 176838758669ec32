"""Small programs, started as cria run starts an engine, and ended by PID."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cria.engine.handle import stop
from cria.engine.launch.launcher import Launched, launch
from cria.errors import CriaError


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def ask(port: int, address: str = "127.0.0.1") -> dict[str, Any]:
    """One line of state from a little engine."""
    with socket.create_connection((address, port), timeout=20) as connection:
        connection.sendall(b"state\n")
        return json.loads(connection.makefile().readline())


def end(pid: int) -> None:
    """End a process tree that a test started or restored, with what it leaves."""
    with contextlib.suppress(CriaError, ProcessLookupError):
        stop(pid, seconds=0.2)


@pytest.fixture
def start(
    tmp_path: Path, programs: Path, shm_is_left_clean: None
) -> Iterator[Callable[..., Launched]]:
    """Start a program of tests/programs and wait until it says ready."""
    started: list[Launched] = []

    def run(program: str, *words: object) -> Launched:
        log = tmp_path / f"{program}-{len(started)}.log"
        launched = launch([sys.executable, str(programs / program), *map(str, words)], log)
        started.append(launched)
        wait_for(lambda: "ready" in log.read_text() or launched.process.poll() is not None)
        assert "ready" in log.read_text(), log.read_text()
        return launched

    yield run
    for launched in started:
        end(launched.pid)
        launched.process.wait(timeout=60)


@pytest.fixture
def ended_after() -> Iterator[list[int]]:
    """PIDs put in here are ended after the test, with their trees."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        end(pid)
