"""User hooks around real dumps and restores: what is undone when they refuse, and what they are told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cria
from cria.engine.control.client import ControlClient
from cria.engine.launch.launcher import Launched
from cria.errors import HookFailed, NoSpace
from cria.events import Event, Warned
from cria.model.hooks import HookCall

pytestmark = pytest.mark.root


@pytest.fixture
def controlled(start: Callable[..., Launched], tmp_path: Path) -> tuple[Launched, ControlClient]:
    path = tmp_path / f"cria-{'0' * 16}.sock"
    launched = start("controlled.py", path)
    return launched, ControlClient(launched.pid, str(path))


@pytest.fixture
def hook(tmp_path: Path) -> Callable[[str], Path]:
    """A program that keeps what it is told at each stage, then does what the shell is told."""

    def make(lines: str = "true") -> Path:
        path = tmp_path / "hook"
        path.write_text(f"#!/bin/sh\ncat >> {tmp_path}/told\n{lines}\n")
        path.chmod(0o700)
        return path

    return make


def told(tmp_path: Path) -> list[HookCall]:
    import msgspec

    lines = (tmp_path / "told").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=HookCall) for line in lines]


def stages(tmp_path: Path) -> list[str]:
    return [facts.stage for facts in told(tmp_path)]


def paused(control: ControlClient) -> bool:
    return bool(control.call("status", seconds=20)["paused"])


def test_a_dump_and_a_restore_tell_each_stage_with_its_facts(
    controlled: tuple[Launched, ControlClient],
    hook: Callable[..., Path],
    tmp_path: Path,
    ended_after: list[int],
) -> None:
    launched, control = controlled
    seen: list[tuple[str, bool]] = []
    watch = lambda facts: seen.append((facts.stage, paused(control)))  # noqa: E731

    checkpoint = cria.dump(
        launched.pid,
        tmp_path / "cp",
        any_process=True,
        leave_running=True,
        hooks=[hook(), watch],
    )
    clone = checkpoint.restore(isolate="always", hooks=[hook()])
    ended_after.append(clone.pid)

    assert seen == [
        ("before-dump", False),
        ("at-still-point", True),
        ("after-resume", False),
        ("after-dump", False),
    ]
    assert stages(tmp_path) == [stage for stage, _ in seen] + ["before-restore", "after-restore"]
    before, still, *_, after_dump, starting, restored = told(tmp_path)
    assert (before.pid, before.images, before.leave_running) == (launched.pid, None, True)
    assert still.images != after_dump.images == str(checkpoint.images)
    assert (starting.pid, restored.pid) == (None, clone.pid)


@pytest.mark.parametrize(
    ("then", "words"), [("exit 4", "status 4"), ("sleep 60", "within 2 s")], ids=["fails", "hangs"]
)
def test_one_that_refuses_at_the_still_point_stops_the_dump_and_the_engine_goes_on(
    controlled: tuple[Launched, ControlClient],
    hook: Callable[..., Path],
    tmp_path: Path,
    then: str,
    words: str,
) -> None:
    launched, control = controlled
    lines = f'[ "$1" != at-still-point ] || {{ echo volume is busy >&2; {then}; }}'
    begin = time.monotonic()

    with pytest.raises(HookFailed, match=words) as caught:
        cria.dump(
            launched.pid,
            tmp_path / "cps" / "one",
            any_process=True,
            hooks=[hook(lines)],
            hook_seconds=2.0,
        )

    assert time.monotonic() - begin < 20
    assert caught.value.details == "volume is busy"
    assert not paused(control)
    assert list((tmp_path / "cps").iterdir()) == []
    assert stages(tmp_path) == ["before-dump", "at-still-point", "dump-failed"]
    failure = told(tmp_path)[-1].error
    assert failure is not None and failure.code == "hook-failed"


def test_one_that_refuses_before_a_restore_is_all_that_happens(
    controlled: tuple[Launched, ControlClient], hook: Callable[..., Path], tmp_path: Path
) -> None:
    launched, _ = controlled
    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True)
    launched.process.wait(timeout=60)

    with pytest.raises(HookFailed):
        checkpoint.restore(hooks=[hook('[ "$1" != before-restore ]')])

    assert not Path(f"/proc/{launched.pid}").exists()
    assert stages(tmp_path) == ["before-restore", "restore-failed"]


def test_what_fails_afterwards_is_a_warning(
    controlled: tuple[Launched, ControlClient],
    hook: Callable[..., Path],
    tmp_path: Path,
    ended_after: list[int],
) -> None:
    launched, _ = controlled
    warnings: list[Event] = []
    fails = hook('case "$1" in after-*) echo nobody listens; exit 1;; esac')

    checkpoint = cria.dump(
        launched.pid, tmp_path / "cp", any_process=True, hooks=[fails], listener=warnings.append
    )
    launched.process.wait(timeout=60)
    engine = checkpoint.restore(hooks=[fails], listener=warnings.append)
    ended_after.append(engine.pid)

    said = [event for event in warnings if isinstance(event, Warned)]
    assert ["after-dump" in said[0].message, "after-restore" in said[1].message] == [True, True]
    assert said[0].remedy == "nobody listens"
    assert Path(f"/proc/{engine.pid}").exists()


def test_a_failure_is_told_when_the_engine_runs_on(
    controlled: tuple[Launched, ControlClient],
    hook: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched, control = controlled
    seen: list[bool] = []

    def full(*_words: object, **_options: object) -> None:
        raise NoSpace("the disk is full")

    def watch(facts: HookCall) -> None:
        if facts.stage == "dump-failed":
            seen.append(paused(control))

    monkeypatch.setattr("cria.checkpoint.saved_files.save", full)
    with pytest.raises(NoSpace):
        cria.dump(launched.pid, tmp_path / "cp", any_process=True, hooks=[hook(), watch])

    assert seen == [False]
    failure = told(tmp_path)[-1].error
    assert failure is not None
    assert (failure.code, failure.message) == ("no-space", "the disk is full")


def test_the_command_line_names_the_hook_that_refused(
    controlled: tuple[Launched, ControlClient], hook: Callable[..., Path], tmp_path: Path
) -> None:
    launched, _ = controlled
    words = ["dump", launched.pid, "-o", tmp_path / "cp", "--any-process", "--json"]
    refused = subprocess.run(
        [sys.executable, "-m", "cria", *map(str, words), "--hook", hook("exit 2")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert refused.returncode == HookFailed.exit_status
    error = json.loads(refused.stdout)["error"]
    assert error["code"] == "hook-failed"
    assert str(tmp_path / "hook") in error["message"]
    assert not (tmp_path / "cp").exists()


def test_each_clone_tells_its_own_stages(
    controlled: tuple[Launched, ControlClient], tmp_path: Path, ended_after: list[int]
) -> None:
    launched, _ = controlled
    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True)
    launched.process.wait(timeout=60)
    seen: list[HookCall] = []

    clones = checkpoint.restore(replicas=2, hooks=[seen.append])
    ended_after += [clone.pid for clone in clones]

    restored = {facts.clone: facts.pid for facts in seen if facts.stage == "after-restore"}
    assert sorted(restored) == [0, 1]
    assert sorted(restored.values()) == sorted(clone.pid for clone in clones)
    assert len(seen) == 4
