"""The control client needs the standard library only, and quiesces several engines within one deadline."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cria.engine.control import client as module
from cria.engine.control.client import ControlClient, ControlFailed, quiesce_all

SOURCE = Path(module.__file__)
Answers = dict[str, dict[str, Any]]
QUIESCED: Answers = {
    "pause": {"paused": True, "by_cria": True},
    "quiesce": {"workers": 1, "groups": 2, "dropped_bytes": 4096},
    "renew": {"lease_seconds": 60.0},
    "resume": {"resumed": True},
}


class FakeEngine:
    """Answers each command at a socket, and records the requests."""

    def __init__(self, path: Path, answers: Answers) -> None:
        self.path, self.answers = path, answers
        self.requests: list[dict[str, Any]] = []
        self.listener = socket.create_server(str(path), family=socket.AF_UNIX)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                line = connection.makefile().readline()
                if not line:  # the client does not trust us
                    continue
                request = json.loads(line)
                self.requests.append(request)
                answer = self.answers.get(request["command"], {"error": "no such command: ..."})
                connection.sendall(json.dumps(answer).encode())

    @property
    def commands(self) -> list[str]:
        return [request["command"] for request in self.requests]

    @property
    def client(self) -> ControlClient:
        return ControlClient(os.getpid(), str(self.path))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Answers], FakeEngine]]:
    engines: list[FakeEngine] = []

    def start(answers: Answers) -> FakeEngine:
        engines.append(FakeEngine(tmp_path / f"{len(engines)}.sock", answers))
        return engines[-1]

    yield start
    for engine in engines:
        engine.listener.shutdown(socket.SHUT_RDWR)
        engine.listener.close()


def test_the_source_is_python_3_9_and_loads_without_cria() -> None:
    ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    program = f"""
import sys
exec(compile(open({str(SOURCE)!r}).read(), "client", "exec"), {{"__name__": "client"}})
print([name for name in sys.modules if name.partition(".")[0] in ("cria", "msgspec", "typing")])
"""
    done = subprocess.run(
        [sys.executable, "-ISc", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


def test_all_engines_are_paused_before_any_drops_its_caches(
    start: Callable[[Answers], FakeEngine],
) -> None:
    engines = [start(QUIESCED), start(QUIESCED)]

    reports, leases = quiesce_all([e.client for e in engines], "drain", seconds=5, lease=60)

    assert reports == [QUIESCED["quiesce"]] * 2
    assert leases == [60.0, 60.0]
    assert [engine.commands for engine in engines] == [["pause", "quiesce", "renew"]] * 2
    assert engines[0].requests[0]["inflight"] == "drain"
    assert engines[1].requests[-1]["lease"] == 60


def test_only_the_client_whose_pause_it_is_extends_the_lease(
    start: Callable[[Answers], FakeEngine],
) -> None:
    first = start(QUIESCED)
    second = start(QUIESCED | {"pause": {"paused": True, "by_cria": False}})

    _, leases = quiesce_all([first.client, second.client], "keep", seconds=5, lease=60)

    assert leases == [60.0]
    assert "renew" not in second.commands


def test_an_older_agent_without_leases_is_quiesced_all_the_same(
    start: Callable[[Answers], FakeEngine],
) -> None:
    engine = start({name: answer for name, answer in QUIESCED.items() if name != "renew"})

    assert quiesce_all([engine.client], "keep", seconds=5, lease=60)[1] == []


def test_an_error_of_the_engine_is_raised_with_its_reason(
    start: Callable[[Answers], FakeEngine],
) -> None:
    engine = start(QUIESCED | {"quiesce": {"error": "core 0 rank 1: no memory"}})

    with pytest.raises(ControlFailed) as caught:
        quiesce_all([engine.client], "keep", seconds=5, lease=60)

    assert caught.value.message == f"the engine of process {os.getpid()} could not quiesce"
    assert caught.value.details == "core 0 rank 1: no memory"


def test_a_listener_that_is_not_trusted_gets_no_command(
    start: Callable[[Answers], FakeEngine],
) -> None:
    engine = start(QUIESCED)
    client = ControlClient(os.getpid(), str(engine.path), trusted_pids={1})

    with pytest.raises(ControlFailed, match="is not of this tree"):
        client.resume(1)

    assert engine.commands == []


def test_a_held_directory_is_reached_when_the_process_has_ended(
    start: Callable[[Answers], FakeEngine],
) -> None:
    engine = start(QUIESCED)
    with subprocess.Popen(["sleep", "60"]) as process:
        client = ControlClient(process.pid, str(engine.path), trusted_pids={os.getpid()})
        client.hold_directory()
        process.kill()

    assert client.resume(1)
