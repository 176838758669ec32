"""A process whose memory is still being loaded is recognized by the name of its tracer."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.errors import EngineBusy
from cria.memory.lazy import client
from cria.memory.lazy.protocol import PROCESS_NAME


def process(proc: Path, pid: int, *, tracer: int = 0, name: str = "python") -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "status").write_text(f"Name:\t{name}\nTracerPid:\t{tracer}\n")
    fields = " ".join(["0"] * 19)
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {fields}\n")


def test_a_supervisor_is_recognized_by_its_name(tmp_path: Path) -> None:
    process(tmp_path, 10)
    process(tmp_path, 11, tracer=50)
    process(tmp_path, 50, name=PROCESS_NAME)

    assert client.find_supervisor([10, 11], tmp_path) == 50
    assert client.find_supervisor([10], tmp_path) is None


def test_a_debugger_is_no_supervisor(tmp_path: Path) -> None:
    process(tmp_path, 10, tracer=50)
    process(tmp_path, 50, name="gdb")

    assert client.find_supervisor([10, 99], tmp_path) is None


def test_loading_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "find_supervisor", lambda _pids: 50)

    with pytest.raises(EngineBusy, match="still being loaded"):
        client.wait_for_memory([10], seconds=0.05)
