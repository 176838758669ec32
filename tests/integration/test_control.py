"""The control socket answers its owner and root only, and survives a dump with the engine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import cria
from cria.engine.control import quiesce
from cria.engine.control.client import ControlClient, ControlFailed
from cria.engine.control.lookup import find_client
from cria.engine.inventory.collect import collect_inventory
from cria.engine.launch.launcher import Launched
from cria.errors import EngineBusy, NoSpace, QuiesceFailed
from cria.model.hooks import HookCall

from .conftest import wait_for

pytestmark = pytest.mark.root
NOBODY = 65534


@pytest.fixture
def controlled(
    request: pytest.FixtureRequest, start: Callable[..., Launched], tmp_path: Path
) -> tuple[Launched, ControlClient]:
    """tests/programs/controlled.py, with the options that a test gives, and a client of its control socket."""
    path = tmp_path / f"cria-{'0' * 16}.sock"
    launched = start("controlled.py", path, *getattr(request, "param", ()))
    return launched, ControlClient(launched.pid, str(path))


@contextmanager
def another_user() -> Iterator[None]:
    """Be the user nobody for the test."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def pause(path: str) -> str:
    """Return the answer of the socket at `path` to this user."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        connection.sendall(b'{"command": "pause"}\n')
        return connection.makefile().read()


def fail(*_arguments: object, **_options: object) -> None:
    raise NoSpace("the disk is full")


def open_directories(path: Path) -> None:
    """Let every user reach `path`, so that the mode of its directories keeps nobody out."""
    for directory in list(path.parents)[:-2]:
        directory.chmod(0o755)


def test_the_control_socket_is_found_in_the_inventory_and_answers(
    controlled: tuple[Launched, ControlClient],
) -> None:
    launched, control = controlled

    client = find_client(collect_inventory(launched.pid, any_process=True))

    assert client is not None
    assert (client.pid, client.path) == (control.pid, control.path)
    assert control.call("status", seconds=20) == {"paused": False, "by_cria": False}


def test_another_user_cannot_open_the_path(controlled: tuple[Launched, ControlClient]) -> None:
    _, control = controlled
    path = Path(control.path)
    open_directories(path)

    with another_user(), pytest.raises(PermissionError):
        pause(control.path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert not control.call("status", seconds=20)["paused"]


def test_another_user_who_can_open_the_path_is_refused(
    controlled: tuple[Launched, ControlClient],
) -> None:
    _, control = controlled
    path = Path(control.path)
    open_directories(path)
    path.chmod(0o666)

    with another_user():
        answer = pause(control.path)

    assert f"refused: uid {NOBODY}" in answer
    assert not control.call("status", seconds=20)["paused"]


def test_the_engine_gets_no_listener_on_the_network(
    controlled: tuple[Launched, ControlClient],
) -> None:
    launched, _ = controlled

    assert collect_inventory(launched.pid, any_process=True).listeners() == ()


def test_the_reason_why_a_command_fails_is_passed_on(
    controlled: tuple[Launched, ControlClient],
) -> None:
    _, control = controlled

    with pytest.raises(ControlFailed) as caught:
        control.call("quiesce", seconds=20)

    assert "not paused" in str(caught.value.details)


def test_an_engine_that_has_ended_does_not_answer(
    controlled: tuple[Launched, ControlClient],
) -> None:
    launched, control = controlled
    launched.process.kill()
    launched.process.wait()

    with pytest.raises(ControlFailed, match="did not answer"):
        control.call("status", seconds=20)


def test_a_socket_of_another_user_in_its_place_is_not_trusted(
    controlled: tuple[Launched, ControlClient], tmp_path: Path
) -> None:
    _, control = controlled
    open_directories(Path(control.path))
    Path(control.path).unlink()
    tmp_path.chmod(0o777)
    with another_user():
        impostor = socket.create_server(control.path, family=socket.AF_UNIX)

    with impostor, pytest.raises(ControlFailed) as caught:
        control.call("status", seconds=20)

    assert f"uid {NOBODY} listens there" in str(caught.value.details)


def calls(pid: int, control: ControlClient) -> int:
    answer = ControlClient(pid, control.path).call("groups", seconds=20)
    return int(answer["ranks"][0]["calls"])


def test_the_engine_is_quiesced_for_its_dump_and_resumed_after_each_restore(
    controlled: tuple[Launched, ControlClient], tmp_path: Path, ended_after: list[int]
) -> None:
    launched, control = controlled
    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True, inflight="drain")
    launched.process.wait(timeout=60)

    original = checkpoint.restore()
    ended_after.append(original.pid)
    clone = checkpoint.restore(isolate="always")
    ended_after.append(clone.pid)

    quiesced = checkpoint.manifest.quiesced
    assert quiesced is not None
    assert (quiesced.workers, quiesced.groups, quiesced.dropped_bytes) == (2, 6, 8192)
    assert quiesced.inflight == "drain"
    for engine in (original, clone):
        status = ControlClient(engine.pid, control.path).call("status", seconds=20)
        assert status == {"paused": False, "by_cria": False}
    assert [calls(original.pid, control) for _ in range(3)] == [2, 3, 4]
    assert calls(clone.pid, control) == 2, "the clone has a socket of its own at the same path"


def test_a_dump_that_leaves_the_engine_running_resumes_it(
    controlled: tuple[Launched, ControlClient], tmp_path: Path
) -> None:
    launched, control = controlled

    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True, leave_running=True)

    assert checkpoint.manifest.quiesced is not None
    assert not control.call("status", seconds=20)["paused"]


def test_a_dump_that_fails_resumes_the_engine(
    controlled: tuple[Launched, ControlClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, control = controlled
    monkeypatch.setattr("cria.checkpoint.saved_files.save", fail)

    with pytest.raises(NoSpace):
        cria.dump(launched.pid, tmp_path / "cp", any_process=True)

    assert calls(launched.pid, control) == 2, "it was quiesced"
    assert not control.call("status", seconds=20)["paused"]


def test_with_no_quiesce_the_engine_is_not_quiesced(
    controlled: tuple[Launched, ControlClient], tmp_path: Path
) -> None:
    launched, control = controlled

    checkpoint = cria.dump(
        launched.pid, tmp_path / "cp", any_process=True, leave_running=True, inflight=None
    )

    assert checkpoint.manifest.quiesced is None
    assert "--no-quiesce" in str(checkpoint.manifest.no_quiesce)
    assert calls(launched.pid, control) == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\n",
        b"pause\n",
        b"[1]\n",
        b'"pause"\n',
        b'{"seconds": 1}\n',
        b"x" * 200_000 + b"\n",
        b"\xff\xfe\n",
    ],
    ids=["nothing", "no JSON", "a list", "a word", "no command", "endless", "no text"],
)
def test_a_request_that_is_no_command_is_refused_and_does_no_harm(
    controlled: tuple[Launched, ControlClient], request_bytes: bytes
) -> None:
    _, control = controlled
    with socket.socket(socket.AF_UNIX) as connection, suppress(BrokenPipeError):
        connection.settimeout(5)
        connection.connect(control.path)
        connection.sendall(request_bytes)
        with suppress(ConnectionResetError):  # the engine hangs up with bytes unread
            assert "no command in JSON" in connection.makefile().read()

    assert control.call("status", seconds=20) == {"paused": False, "by_cria": False}


@pytest.mark.parametrize("arguments", [{"seconds": "soon"}, {"inflight": 3}, {"a": 1}])
def test_a_command_with_arguments_that_do_not_fit_is_refused(
    controlled: tuple[Launched, ControlClient], arguments: dict[str, object]
) -> None:
    _, control = controlled
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(control.path)
        connection.sendall(json.dumps({"command": "pause"} | arguments).encode() + b"\n")
        answer = json.loads(connection.makefile().read())

    assert "error" in answer
    assert not control.call("status", seconds=20)["paused"]


def test_a_silent_client_keeps_no_other_client_waiting(
    controlled: tuple[Launched, ControlClient],
) -> None:
    _, control = controlled
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(control.path)
        begin = time.monotonic()
        control.call("status", seconds=20)

    assert time.monotonic() - begin < 2


def test_the_second_resume_changes_nothing(controlled: tuple[Launched, ControlClient]) -> None:
    _, control = controlled
    control.call("pause", seconds=20)

    answers = [control.call("resume", seconds=20) for _ in range(2)]

    assert answers == [{"resumed": True}, {"resumed": False}]
    assert not control.call("status", seconds=20)["paused"]


def test_when_cria_is_killed_the_engine_goes_on_by_itself(
    controlled: tuple[Launched, ControlClient], tmp_path: Path
) -> None:
    launched, control = controlled
    program = f"""
import pathlib, time, cria, cria.engine.control.quiesce
def hook(facts):
    if facts.stage == "at-still-point":
        pathlib.Path("{tmp_path}/paused").touch()
        time.sleep(20)
cria.engine.control.quiesce.LEASE_MARGIN_SECONDS = 0.5
cria.dump({launched.pid}, "{tmp_path}/cp", any_process=True, hooks=[hook], hook_seconds=0.1)
"""
    dump = subprocess.Popen([sys.executable, "-c", program])
    wait_for((tmp_path / "paused").exists, seconds=20)
    dump.kill()
    dump.wait()

    wait_for(lambda: not control.call("status", seconds=20)["paused"])


@pytest.mark.parametrize("controlled", [(0.2,)], indirect=True)
def test_a_hook_may_take_longer_than_the_first_lease_of_the_pause(
    controlled: tuple[Launched, ControlClient], tmp_path: Path
) -> None:
    launched, _ = controlled

    cria.dump(
        launched.pid,
        tmp_path / "cp",
        any_process=True,
        leave_running=True,
        hooks=[lambda facts: time.sleep(0.6 if facts.stage == "at-still-point" else 0)],
    )

    assert (tmp_path / "cp").exists()


def test_a_hook_that_takes_too_long_does_not_keep_the_engine_paused(
    controlled: tuple[Launched, ControlClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook that is a function cannot be killed. The engine has gone on by then, so the dump is refused."""
    monkeypatch.setattr(quiesce, "LEASE_MARGIN_SECONDS", 0.1)
    launched, _ = controlled

    with pytest.raises(QuiesceFailed) as caught:
        cria.dump(
            launched.pid,
            tmp_path / "cp",
            any_process=True,
            hook_seconds=0.1,
            hooks=[lambda facts: time.sleep(1.0 if facts.stage == "at-still-point" else 0)],
        )

    assert "not paused" in str(caught.value.details)
    assert not (tmp_path / "cp").exists()


@pytest.mark.parametrize(
    ("controlled", "command"),
    [((60, "pause_generation"), "pause"), ((60, "collective_rpc"), "quiesce")],
    indirect=["controlled"],
    ids=["while it pauses", "while it drops its caches"],
)
def test_when_the_engine_dies_in_a_command_the_error_says_that_it_has_ended(
    controlled: tuple[Launched, ControlClient], command: str, tmp_path: Path
) -> None:
    launched, _ = controlled
    begin = time.monotonic()

    with pytest.raises(QuiesceFailed) as caught:
        cria.dump(launched.pid, tmp_path / "cps" / "cp", any_process=True)

    assert launched.process.wait(timeout=5) == 7
    assert f"did not answer: {command}" in caught.value.message
    assert f"({launched.pid}) has ended" in str(caught.value.details)
    assert "start it again" in str(caught.value.remedy)
    assert time.monotonic() - begin < 10, "nobody waits for a process that has ended"
    assert list((tmp_path / "cps").iterdir()) == []


def test_a_second_dump_while_one_runs_is_refused_at_once_and_does_not_disturb_the_first(
    controlled: tuple[Launched, ControlClient], tmp_path: Path
) -> None:
    launched, control = controlled
    refused: list[EngineBusy] = []

    def dump_again(facts: HookCall) -> None:
        if facts.stage == "at-still-point":
            with pytest.raises(EngineBusy) as caught:
                cria.dump(launched.pid, tmp_path / "second", any_process=True)
            refused.append(caught.value)

    cria.dump(
        launched.pid, tmp_path / "first", any_process=True, leave_running=True, hooks=[dump_again]
    )

    assert str(launched.pid) in refused[0].message
    assert refused[0].remedy
    assert not (tmp_path / "second").exists()
    assert not control.call("status", seconds=20)["paused"]
    cria.dump(launched.pid, tmp_path / "second", any_process=True, leave_running=True)
