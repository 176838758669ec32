"""What runs in a container finds its engines, and quiesces all of them or none."""

from __future__ import annotations

import ast
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cria.engine.control import client
from cria.engine.control.client import ControlClient, ControlFailed
from cria.kubernetes.node import criu_engines, in_pod

PAUSE = {"command": "pause", "inflight": "keep", "seconds": 60.0, "lease": 90.0}
RESUME = {"command": "resume"}


class FakeCore:
    """The part of an engine that all of its API servers share."""

    def __init__(self, *, paused: bool = False) -> None:
        self.paused = paused


class FakeApiServer(ControlClient):
    """One of several API servers of an engine: the pause belongs to the first that is asked for it."""

    def __init__(self, core: FakeCore, *, lease_ended: bool = False) -> None:
        super().__init__(1, "/tmp/cria-0.sock")
        self.core, self.lease_ended = core, lease_ended
        self.has_paused = False
        self.calls: list[tuple[str, float]] = []

    def call(self, command: str, *, seconds: float, **arguments: Any) -> dict[str, Any]:
        self.calls.append((command, seconds))
        if command == "pause":
            self.has_paused = not self.core.paused
            self.core.paused = True
            return {"paused": True, "by_cria": self.has_paused}
        if command == "quiesce":
            return {"workers": 1, "groups": 5, "dropped_bytes": 4096}
        if command == "renew":
            if not self.has_paused or self.lease_ended:
                raise ControlFailed("the engine could not renew", "nothing to renew")
            return {"lease_seconds": arguments["lease"]}
        has_paused, self.has_paused = self.has_paused, False
        self.core.paused = self.core.paused and not has_paused
        return {"resumed": has_paused}


def test_api_servers_of_one_engine_share_its_pause() -> None:
    core = FakeCore()
    first, second = FakeApiServer(core), FakeApiServer(core)

    answer = in_pod.handle(PAUSE, [first, second])

    assert len(answer["engines"]) == 2
    assert answer["lease_seconds"] == 90.0
    assert [command for command, _ in second.calls] == ["pause", "quiesce"]
    assert in_pod.handle(RESUME, [first, second]) == {"resumed": [True, False]}
    assert not core.paused


def test_an_engine_that_somebody_else_has_paused_stays_paused() -> None:
    core = FakeCore(paused=True)

    answer = in_pod.handle(PAUSE, [FakeApiServer(core)])
    in_pod.handle(RESUME, [FakeApiServer(core)])

    assert answer["lease_seconds"] is None
    assert core.paused


def test_all_engines_resume_when_one_has_resumed_before_the_last_is_quiesced() -> None:
    first, second = FakeApiServer(FakeCore(), lease_ended=True), FakeApiServer(FakeCore())

    with pytest.raises(ControlFailed, match="nothing to renew"):
        in_pod.handle(PAUSE, [first, second])

    assert not first.core.paused
    assert not second.core.paused


def test_all_engines_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(client.time, "monotonic", lambda: now[0])
    servers = [FakeApiServer(FakeCore()) for _ in range(2)]
    call = servers[0].call

    def slow_call(command: str, **arguments: Any) -> dict[str, Any]:
        now[0] += 20.0
        return call(command, **arguments)

    monkeypatch.setattr(servers[0], "call", slow_call)
    in_pod.handle(PAUSE, servers)

    assert [seconds for _, seconds in servers[1].calls[:2]] == [40.0, 20.0]


@pytest.fixture
def listen() -> Callable[[str | bytes], None]:
    """Listen at unix sockets until the end of the test."""
    sockets: list[socket.socket] = []

    def listen(path: str | bytes) -> None:
        listener = socket.socket(socket.AF_UNIX)
        sockets.append(listener)
        listener.bind(path)
        listener.listen()

    yield listen
    for listener in sockets:
        listener.close()


def test_a_control_socket_is_found_with_the_process_that_holds_it(
    tmp_path: Path, listen: Callable[[str | bytes], None]
) -> None:
    listen(f"{tmp_path}/cria-0.sock")
    listen(f"{tmp_path}/another.sock")

    sockets = criu_engines.find_control_sockets(os.getpid())

    assert sockets == [(os.getpid(), f"{tmp_path}/cria-0.sock")]


def test_sockets_with_odd_names_do_not_disturb(
    tmp_path: Path, listen: Callable[[str | bytes], None]
) -> None:
    listen(f"{tmp_path}/cria-0.sock")
    listen(f"{tmp_path}/a\n/cria-1.sock".replace("/cria", "cria"))
    listen(os.fsencode(tmp_path) + b"/cria-\xff.sock")

    engines = in_pod.find_engines(os.getpid(), [os.getpid()])

    assert len(engines) == 2


def test_a_process_that_must_not_be_looked_into_is_an_error(
    tmp_path: Path,
    listen: Callable[[str | bytes], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_path: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    listen(f"{tmp_path}/cria-0.sock")
    monkeypatch.setattr(criu_engines.os, "listdir", refuse)

    with pytest.raises(PermissionError):
        criu_engines.find_control_sockets(os.getpid(), [os.getpid()])


def test_the_program_for_a_container_is_python_3_9() -> None:
    ast.parse(Path(in_pod.__file__).read_text(), feature_version=(3, 9))


def test_our_own_pid_has_its_number_in_our_namespace() -> None:
    assert criu_engines.pids_in_our_namespace([os.getpid()]) == [os.getpid()]
    assert os.getpid() in in_pod.container_pids()
