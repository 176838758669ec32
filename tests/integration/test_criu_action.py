"""The action script with a CRIU that a user runs: hooks/criu on a process tree without a container."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from cria.criu import program
from cria.engine.control import client
from cria.engine.control.client import ControlClient
from cria.engine.launch.launcher import Launched
from tests.integration.conftest import wait_for

pytestmark = pytest.mark.root
ACTION = Path(__file__).parents[2] / "hooks" / "criu" / "criu-action"


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A program with a control socket, as an engine has."""

    launched: Launched
    control: ControlClient

    @property
    def calls(self) -> int:
        """The number of calls of its workers, with this one."""
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

    def run(verb: str, options: Sequence[object] = (), action: Path = ACTION) -> tuple[int, str]:
        always = ("--images-dir", images, "--log-file", "log", "-v4", "--shell-job")
        command = [program.find(), verb, *always, "--action-script", action, *options]
        result = subprocess.run(list(map(str, command)), env={}, check=False, timeout=60)
        return result.returncode, (images / "log").read_text()

    return run


def test_the_engine_is_quiesced_for_a_dump_and_resumes(
    serving: Serving, criu: Callable[..., tuple[int, str]]
) -> None:
    status, log = criu("dump", ["--tree", serving.launched.pid, "--leave-running"])

    assert status == 0, log
    assert "cria: 1 engine(s) quiesced" in log
    wait_for(lambda: not serving.paused)
    assert serving.calls == 2, "the call of the dump, and this one"


def test_a_restored_copy_resumes(
    serving: Serving, criu: Callable[..., tuple[int, str]], ended_after: list[int]
) -> None:
    assert criu("dump", ["--tree", serving.launched.pid])[0] == 0
    serving.launched.process.wait(timeout=60)

    status, log = criu("restore", ["--restore-detached"])
    ended_after.append(serving.launched.pid)

    assert status == 0, log
    assert "cria: the restored engine is resumed" in log
    assert not serving.paused


def test_after_a_failed_dump_the_engine_resumes(
    serving: Serving, criu: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    outside = socket.socket(socket.AF_UNIX)
    outside.connect(serving.control.path)  # one end inside the tree, one outside: CRIU refuses

    with outside:
        status, log = criu("dump", ["--tree", serving.launched.pid, "--leave-running"])

    assert status != 0
    assert "cria: 1 engine(s) quiesced" in log
    wait_for(lambda: not serving.paused)


def test_settings_that_cannot_be_read_refuse_the_dump(
    serving: Serving, criu: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    action = tmp_path / "criu-action"
    for module in ACTION.resolve().parent.glob("criu_*.py"):
        shutil.copy(module, tmp_path)
    shutil.copy(client.__file__, tmp_path / "criu_control.py")
    shutil.copy(ACTION, action)
    (tmp_path / "criu-action.json").write_text("{")

    status, log = criu("dump", ["--tree", serving.launched.pid, "--leave-running"], action)

    assert status != 0
    assert "cria: not quiesced, the dump is refused: Expecting" in log
    assert not serving.paused


def test_a_socket_of_another_tree_gets_no_command(
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


def test_a_tree_without_an_agent_is_dumped(
    start: Callable[..., Launched], criu: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    plain = start("controlled.py", tmp_path / "plain.sock")

    status, log = criu("dump", ["--tree", plain.pid, "--leave-running"])

    assert status == 0, log
    assert "Running pre-dump scripts" in log
    assert "cria:" not in log
