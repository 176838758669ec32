"""CRIU does what cria asks, whatever its configuration files say."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import cria
from cria.engine.launch.launcher import Launched

from .conftest import ask, wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]


@pytest.fixture(params=["default.conf", "CRIU_CONFIG_FILE"])
def leave_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """CRIU is told by its configuration to let every process run on after a dump."""
    directory = tmp_path / "home" / ".criu"
    directory.mkdir(parents=True)
    (directory / "default.conf").write_text("leave-running\n")
    if request.param == "default.conf":
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    else:
        monkeypatch.setenv("CRIU_CONFIG_FILE", str(directory / "default.conf"))


@pytest.mark.usefixtures("leave_running")
def test_an_engine_ends_although_criu_s_configuration_says_leave_running(
    start: Callable[..., Launched], free_port: Callable[[], int], tmp_path: Path
) -> None:
    port = free_port()
    launched = start("little_engine.py", port, tmp_path)

    cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)

    assert launched.process.wait(timeout=10) == -signal.SIGKILL
    with pytest.raises(ConnectionRefusedError):
        ask(port)


@pytest.mark.usefixtures("leave_running")
def test_a_clone_ends_as_well(
    start: Callable[..., Launched], free_port: Callable[[], int], tmp_path: Path
) -> None:
    port, new = free_port(), free_port()
    launched = start("little_engine.py", port, tmp_path)
    checkpoint = cria.dump(
        launched.pid, tmp_path / "checkpoint", any_process=True, leave_running=True
    )
    engine = checkpoint.restore([f"{port}={new}", "fresh"])

    cria.dump(engine.pid, tmp_path / "second", any_process=True)

    try:
        wait_for(lambda: not Path(f"/proc/{engine.pid}").exists(), seconds=10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine.pid, signal.SIGKILL)
    assert ask(port)["tcp"]
