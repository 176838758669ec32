"""Each bad input is one error of its own kind, and the engine serves on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cria
from cria.criu.client import Conversation, CriuRefused
from cria.engine.launch.launcher import Launched
from cria.errors import (
    CheckpointNewer,
    CriuMissing,
    CriuUnsuitable,
    NoSpace,
    NotWritable,
    PortPlanRefused,
    UsageError,
)

from .conftest import ask, wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]
Mount = Callable[[str], Path]


@pytest.fixture
def little(
    start: Callable[..., Launched], free_port: Callable[[], int], tmp_path: Path
) -> Iterator[tuple[Launched, int]]:
    """A little engine that must still serve when the test is over."""
    port = free_port()
    launched = start("little_engine.py", port, tmp_path)
    yield launched, port
    assert ask(port)["tcp"]
    assert ask(port)["unix"]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A small memory file system with the given options."""
    place = tmp_path / "mounted"

    def make(options: str) -> Path:
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        return place

    yield make
    subprocess.run(["umount", place], check=False)


def test_a_disk_that_is_too_small_is_seen_before(
    little: tuple[Launched, int], mount: Mount
) -> None:
    place = mount("size=4m")

    with pytest.raises(NoSpace) as caught:
        cria.dump(little[0].pid, place / "checkpoint", any_process=True)

    assert "MiB" in (caught.value.details or "")
    assert list(place.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_loses_nothing(
    little: tuple[Launched, int], mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = mount("size=4m")
    monkeypatch.setattr("cria.operations.checks.preflight.dump", lambda *_: None)

    with pytest.raises(NoSpace) as caught:
        cria.dump(little[0].pid, place / "checkpoint", any_process=True)

    assert Path(caught.value.log or "").is_file()
    assert list(place.iterdir()) == []


def test_a_read_only_disk_cannot_be_dumped_to(little: tuple[Launched, int], mount: Mount) -> None:
    with pytest.raises(NotWritable):
        cria.dump(little[0].pid, mount("ro") / "checkpoint", any_process=True)


def test_a_missing_capability_is_named(little: tuple[Launched, int], tmp_path: Path) -> None:
    done = subprocess.run(
        [
            "setpriv",
            "--bounding-set=-sys_ptrace,-net_admin",
            sys.executable,
            "-m",
            "cria",
            "dump",
            str(little[0].pid),
            "--any-process",
            "-o",
            str(tmp_path / "checkpoint"),
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    error = json.loads(done.stdout)["error"]
    assert done.returncode == 10
    assert error["code"] == "privilege-missing"
    assert not (tmp_path / "checkpoint").exists()


def test_no_criu_at_all(
    little: tuple[Launched, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRIA_CRIU", str(tmp_path / "criu"))

    with pytest.raises(CriuMissing, match="CRIA_CRIU"):
        cria.dump(little[0].pid, tmp_path / "checkpoint", any_process=True)


def test_a_criu_that_is_too_old(
    little: tuple[Launched, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "criu"
    old.write_text("#!/bin/sh\necho 'Version: 3.17.1'\n")
    old.chmod(0o755)
    monkeypatch.setenv("CRIA_CRIU", str(old))

    with pytest.raises(CriuUnsuitable, match=r"3\.17\.1"):
        cria.dump(little[0].pid, tmp_path / "checkpoint", any_process=True)


def test_a_checkpoint_of_a_newer_cria(little: tuple[Launched, int], tmp_path: Path) -> None:
    checkpoint = cria.dump(
        little[0].pid, tmp_path / "checkpoint", any_process=True, leave_running=True
    )
    manifest = checkpoint.path / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"schema_version": 99}))

    with pytest.raises(CheckpointNewer) as caught:
        cria.restore(checkpoint.path)

    assert "99" in (caught.value.details or "")


@pytest.mark.parametrize("words", [["{port}=21501", "{port}=21502"], ["{port}=70000"], ["x=y"]])
def test_port_wishes_that_cannot_be(
    little: tuple[Launched, int], tmp_path: Path, words: list[str]
) -> None:
    checkpoint = cria.dump(
        little[0].pid, tmp_path / "checkpoint", any_process=True, leave_running=True
    )

    with pytest.raises((UsageError, PortPlanRefused)):
        checkpoint.restore([word.format(port=little[1]) for word in words])


@contextmanager
def frozen_dump(pid: int, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A cria that dumps `pid`, at the worst moment: CRIU has frozen the engine, and cria saves its files."""
    program = f"""
import sys, time
sys.argv = ["cria", "dump", "{pid}", "--any-process", "-o", "{place}"]
from cria.checkpoint import saved_files
def slow(*_a, **_k):
    print("frozen", flush=True)
    time.sleep(60)
saved_files.save = slow
from cria.cli import main
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as dumping:
        assert dumping.stdout is not None
        assert dumping.stdout.readline() == b"frozen\n"
        yield dumping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_dump_lets_the_engine_run_on(
    little: tuple[Launched, int], tmp_path: Path, number: signal.Signals
) -> None:
    with frozen_dump(little[0].pid, tmp_path / "out" / "checkpoint") as dumping:
        dumping.send_signal(number)
        assert dumping.wait(timeout=30) == 130
    assert list((tmp_path / "out").iterdir()) == []


def test_a_cria_that_is_killed_in_the_middle_lets_the_engine_run_on(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    """The worst end of all: CRIU notices that nobody answers, and undoes the dump."""
    with frozen_dump(little[0].pid, tmp_path / "out" / "checkpoint") as dumping:
        dumping.kill()
    wait_for(lambda: ask(little[1])["tcp"])
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_signals_reach_the_engine_through_a_cria_run_in_the_foreground(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(15, lambda *_: exit(9)); print('up', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cria",
            "run",
            "--log",
            tmp_path / "log",
            "--",
            sys.executable,
            "-c",
            program,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        time.sleep(0.1)
        running.send_signal(signal.SIGTERM)

        assert running.wait(timeout=20) == 9


def test_an_engine_that_has_ended_is_in_its_checkpoint_even_when_criu_dies_before_it_says_so(
    start: Callable[..., Launched],
    free_port: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ended_after: list[int],
) -> None:
    """So it goes with a clone: its PID namespace ends with its root, and takes CRIU with it."""
    port = free_port()
    launched = start("little_engine.py", port, tmp_path)

    def finish_and_die(self: Conversation) -> None:
        finish(self)
        raise CriuRefused("dump", 0, "CRIU ended without an answer")

    finish = Conversation.finish
    monkeypatch.setattr(Conversation, "finish", finish_and_die)
    checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    monkeypatch.undo()
    launched.process.wait(timeout=60)

    engine = cria.restore(checkpoint.path)
    ended_after.append(engine.pid)
    assert ask(port)["tcp"]


def test_an_interrupt_after_the_engine_has_ended_takes_nothing_back(
    start: Callable[..., Launched],
    free_port: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ended_after: list[int],
) -> None:
    port = free_port()
    launched = start("little_engine.py", port, tmp_path)

    def finish_and_interrupt(self: Conversation) -> None:
        finish(self)
        raise KeyboardInterrupt

    finish = Conversation.finish
    monkeypatch.setattr(Conversation, "finish", finish_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    monkeypatch.undo()
    launched.process.wait(timeout=60)

    engine = cria.restore(tmp_path / "checkpoint")
    ended_after.append(engine.pid)
    assert ask(port)["tcp"]
