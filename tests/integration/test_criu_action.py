"""The action script with a CRIU of one's own: hooks/criu on a process tree without a container."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from cria.criu import program
from cria.engine.control.client import ControlClient
from cria.engine.launch.launcher import Launched
from tests.integration.conftest import wait_for

pytestmark = pytest.mark.root
ACTION = Path(__file__).parents[2] / "hooks" / "criu" / "criu-action"


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A program that is controlled as an engine is."""

    launched: Launched
    control: ControlClient

    @property
    def calls(self) -> int:
        """How often its workers were called; to ask is a call too."""
        answer = self.control.call("groups", seconds=20)
        return int(answer["ranks"][0]["calls"])

    @property
    def paused(self) -> bool:
        return bool(self.control.call("status", seconds=20)["paused"])


@pytest.fixture
def serving(start: Callable[..., Launched], tmp_path: Path) -> Serving:
    path = tmp_path / f"cria-{'0' * 16}.sock"
    launched = start("controlled.py", path)
    return Serving(launched=launched, control=ControlClient(launched.pid, str(path)))


@pytest.fixture
def criu(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run CRIU with the action script, without PATH; returns its exit status and its log."""
    images = tmp_path / "images"
    images.mkdir()

    def run(verb: str, words: Sequence[object] = (), action: Path = ACTION) -> tuple[int, str]:
        options = ("--images-dir", images, "--log-file", "log", "-v4", "--shell-job")
        command = [program.find(), verb, *options, "--action-script", action, *words]
        done = subprocess.run([str(word) for word in command], env={}, check=False, timeout=60)
        return done.returncode, (images / "log").read_text()

    return run


def test_a_dump_is_taken_at_a_still_point_and_the_engine_goes_on(
    serving: Serving, criu: Callable[..., tuple[int, str]]
) -> None:
    status, log = criu("dump", ["--tree", serving.launched.pid, "--leave-running"])

    assert status == 0, log
    assert "cria: 1 engine(s) at a still point" in log
    wait_for(lambda: not serving.paused)
    assert serving.calls == 2, "it had stood still"


def test_a_restored_copy_goes_on(
    serving: Serving, criu: Callable[..., tuple[int, str]], ended_after: list[int]
) -> None:
    assert criu("dump", ["--tree", serving.launched.pid])[0] == 0
    serving.launched.process.wait(timeout=60)

    status, log = criu("restore", ["--restore-detached"])
    ended_after.append(serving.launched.pid)

    assert status == 0, log
    assert "cria: the restored engine goes on" in log
    assert not serving.paused


def test_a_dump_that_fails_lets_the_engine_go_on(
    serving: Serving, criu: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(serving.control.path)  # one end inside, one outside: CRIU refuses

    with stranger:
        status, log = criu("dump", ["--tree", serving.launched.pid, "--leave-running"])

    assert status != 0
    assert "cria: 1 engine(s) at a still point" in log
    wait_for(lambda: not serving.paused)


def test_settings_that_cannot_be_read_refuse_the_dump(
    serving: Serving, criu: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    action = tmp_path / "criu-action"
    action.write_bytes(ACTION.read_bytes())
    action.chmod(0o755)
    (tmp_path / "criu-action.json").write_text("{")

    status, log = criu("dump", ["--tree", serving.launched.pid, "--leave-running"], action)

    assert status != 0
    assert "cria: no still point, the dump is refused" in log
    assert not serving.paused


def test_a_socket_of_another_tree_in_its_place_is_not_commanded(
    serving: Serving,
    start: Callable[..., Launched],
    criu: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    other = tmp_path / "other.sock"
    victim = ControlClient(start("controlled.py", other).pid, str(other))
    os.unlink(serving.control.path)
    os.symlink(other, serving.control.path)

    status, log = criu("dump", ["--tree", serving.launched.pid, "--leave-running"])

    assert status != 0
    assert "is not of this tree" in log
    assert not victim.call("status", seconds=20)["paused"]


def test_a_tree_without_cria_passes(
    start: Callable[..., Launched], criu: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    plain = start("controlled.py", tmp_path / "plain.sock")

    status, log = criu("dump", ["--tree", plain.pid, "--leave-running"])

    assert status == 0, log
    assert "Running pre-dump scripts" in log
    assert "cria:" not in log
