"""An operation that is interrupted is undone: nothing of it runs on and nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cria
from cria.engine.launch.launcher import Launched

from .conftest import ask, end, wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]

INSTANTS = [
    0.12 + 0.03 * number for number in range(12)
]  # seconds; such a restore takes about 0.4 s


def inits() -> set[int]:
    """The PIDs of the inits of all clones on this host."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"/isolation/init.py") for word in words):
            found.add(int(path.parent.name))
    return found


def listens(port: int) -> bool:
    try:
        ask(port)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_replicas_that_are_interrupted_leave_no_clone(
    start: Callable[..., Launched],
    free_port: Callable[[], int],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    port = free_port()
    launched = start("little_engine.py", port, tmp_path)
    checkpoint = cria.dump(
        launched.pid, tmp_path / "checkpoint", any_process=True, leave_running=True
    )
    before = inits()
    interrupted = 0
    for instant in INSTANTS:
        first = 22000 + 100 * number + 3 * INSTANTS.index(instant)
        command = ["restore", str(checkpoint.path), "--replicas", "3", "--progress", "none"]
        ports = ["-p", f"{port}={first}..{first + 2}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "cria", *command, *ports],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            process.wait(instant)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, number)
        _, errors = process.communicate(timeout=60)

        if process.returncode == 0:  # it was over before: these clones are to be ended by the test
            for clone in inits() - before:
                os.kill(clone, signal.SIGKILL)
        else:
            interrupted += 1
            assert process.returncode == 130, errors
        wait_for(lambda: inits() == before, seconds=10)
        assert not any(listens(first + clone) for clone in range(3))
    assert interrupted > len(INSTANTS) // 3
    assert ask(port)["tcp"]


def test_two_restores_to_the_host_at_once_both_serve(
    start: Callable[..., Launched], free_port: Callable[[], int], tmp_path: Path
) -> None:
    """Both find PIDs and paths free; the second must not replace, or take away, the files of the first."""
    port = free_port()
    launched = start("little_engine.py", port, tmp_path)
    checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    launched.process.wait(timeout=60)
    options = ["--ports", "auto", "--progress", "none", "--json"]
    command = [sys.executable, "-m", "cria", "restore", str(checkpoint.path), *options]
    for _ in range(4):
        ports = free_port(), free_port()
        both = [
            subprocess.Popen(
                [*command, "-p", f"{port}={new}"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for new in ports
        ]
        answers = [json.loads(process.communicate(timeout=60)[0]) for process in both]
        try:
            assert [process.returncode for process in both] == [0, 0], answers
            for new in ports:
                assert all(ask(new)[name] for name in ("tcp", "unix", "pipe")), answers
                assert ask(new)["shared"] > 0
        finally:
            for answer in answers:
                if "pid" in answer:
                    end(answer["pid"])
