"""A session quiesces the engines of a container once, and resumes them whatever interrupts it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cria.errors import NoSuchProcess, UsageError
from cria.kubernetes.kubelet import local_container, quiesce
from cria.kubernetes.kubelet.cluster import KubeletAccess
from cria.kubernetes.kubelet.pods import Pod, RunningContainer, find_running
from cria.kubernetes.kubelet.quiesce import (
    ContainerQuiesceSession,
    QuiescedEngine,
    QuiesceOptions,
    Request,
    Response,
)
from tests.kubernetes.fake_api_server import pod


def container(container_id: str = "c0ffee") -> RunningContainer:
    description = pod("p", container_id=f"containerd://{container_id}")
    return find_running(msgspec.convert(description, Pod))


def test_a_resume_that_is_interrupted_is_asked_for_again() -> None:
    commands: list[str] = []

    def send(request: Request, _seconds: float) -> Response:
        commands.append(request.command)
        if commands == ["pause", "resume"]:
            raise KeyboardInterrupt
        engine = QuiescedEngine(workers=1, groups=5, dropped_bytes=4096)
        return Response(engines=(engine,), resumed=(True,))

    session = ContainerQuiesceSession(container(), QuiesceOptions(), send, None)
    session.pause()
    with pytest.raises(KeyboardInterrupt):
        session.resume()

    session.resume()
    session.resume()

    assert commands == ["pause", "resume", "resume"]
    assert session.record.resumed


def test_a_request_is_what_older_programs_in_pods_read() -> None:
    requests: list[Any] = []

    def send(request: Request, _seconds: float) -> Response:
        requests.append(json.loads(msgspec.json.encode(request)))
        return Response(engines=(QuiescedEngine(workers=1, groups=5, dropped_bytes=0),))

    session = ContainerQuiesceSession(container(), QuiesceOptions(), send, None)
    session.pause()
    session.resume()

    assert requests == [
        {"command": "pause", "inflight": "keep", "seconds": 60.0, "lease": 60.0},
        {"command": "resume"},
    ]


def test_a_kubelet_is_not_asked_in_clear() -> None:
    with pytest.raises(UsageError, match="in clear"):
        KubeletAccess(url="http://127.0.0.1:10255").url_of(container())
    assert KubeletAccess(url="https://node:10250").url_of(container()) == "https://node:10250"


def test_a_kubelet_s_url_has_the_address_of_its_node() -> None:
    six = msgspec.structs.replace(container(), address="fd00::5")

    assert KubeletAccess().url_of(container()) == "https://127.0.0.1:10250"
    assert KubeletAccess().url_of(six) == "https://[fd00::5]:10250"


# What is sent to a container --------------------------------------------------------------------


def test_the_program_for_a_container_runs_there_without_cria() -> None:
    """With an isolated Python, and a command that reaches no engine."""
    command = [sys.executable, "-I", "-S", "-c", quiesce._LOADER, quiesce.packed_sources()]

    result = subprocess.run(
        [*command, '{"command": "nonsense"}'], capture_output=True, text=True, check=True, cwd="/"
    )

    assert json.loads(result.stdout) == {"error": "no such command: nonsense"}


def test_the_program_for_a_container_fits_into_a_url() -> None:
    assert len(quiesce.packed_sources()) < 8000


# On the container's own node ----------------------------------------------------------------------


def test_on_its_node_a_container_is_found_by_its_cgroup(tmp_path: Path) -> None:
    for pid, parent, cgroup in ((7, 1, "/"), (8, 7, "/pods/c0ffee"), (9, 8, "/pods/c0ffee")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::{cgroup}\n")
        fields = [parent, pid, pid, 0, -1, *[0] * 11, 1, 0, 100]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a b) S {' '.join(map(str, fields))}")

    assert local_container.find_root_process(container("c0ffee"), tmp_path) == 8
    with pytest.raises(NoSuchProcess, match="no process on this host"):
        local_container.find_root_process(container("ba11"), tmp_path)


def test_a_container_that_its_runtime_freezes_late_is_thawed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freezer = tmp_path / "freezer.state"
    freezer.write_text("FREEZING")
    monkeypatch.setattr(local_container, "find_root_process", lambda _container: 1)
    monkeypatch.setattr(
        local_container.criu_action, "find_freezer", lambda _pid: (str(freezer), "FROZEN", "THAWED")
    )
    monkeypatch.setattr(local_container.shutil, "which", lambda _name: None)
    timer = threading.Timer(0.05, freezer.write_text, ("FROZEN",))
    timer.start()

    thawed = local_container.thaw(container())

    timer.join()
    assert thawed
    assert freezer.read_text() == "THAWED"


def test_a_container_that_is_not_here_is_not_thawed() -> None:
    assert not local_container.thaw(container("no-such-container"))
