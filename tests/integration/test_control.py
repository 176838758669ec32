"""The control socket: who may use it, who may not, and that it lives through a dump as all else does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cria
from cria.engine.control import Control, find
from cria.engine.launch import Launched
from cria.engine.take import take
from cria.errors import NoSpace, QuiesceFailed

pytestmark = pytest.mark.root
NOBODY = 65534


@pytest.fixture
def controlled(start: Callable[..., Launched], tmp_path: Path) -> tuple[Launched, Control]:
    path = tmp_path / f"cria-{'0' * 16}.sock"
    launched = start("controlled.py", path)
    return launched, Control(pid=launched.pid, path=str(path))


@contextmanager
def another_user() -> Iterator[None]:
    """Be nobody, without root's power to pass over permissions."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def pause(path: str) -> str:
    """What the socket at `path` answers to a command of whoever we are."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        connection.sendall(b'{"command": "pause"}\n')
        return connection.makefile().read()


def fail(*_words: object, **_options: object) -> None:
    raise NoSpace("the disk is full")


def open_the_way(path: Path) -> None:
    """Let everybody reach `path`: what keeps others out then is not where it lies."""
    for directory in list(path.parents)[:-2]:
        directory.chmod(0o755)


def test_it_is_found_in_the_inventory_and_answers(controlled: tuple[Launched, Control]) -> None:
    launched, control = controlled

    assert find(take(launched.pid, any_process=True)) == control
    assert control.ask("status", seconds=2) == {"paused": False, "by_cria": False}


def test_the_path_is_its_owners_only(controlled: tuple[Launched, Control]) -> None:
    _, control = controlled
    path = Path(control.path)
    open_the_way(path)

    with another_user(), pytest.raises(PermissionError):
        pause(control.path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert not control.ask("status", seconds=2)["paused"]


def test_another_user_who_can_open_the_path_is_refused_all_the_same(
    controlled: tuple[Launched, Control],
) -> None:
    _, control = controlled
    path = Path(control.path)
    open_the_way(path)
    path.chmod(0o666)

    with another_user():
        answer = pause(control.path)

    assert f"refused: uid {NOBODY}" in answer
    assert not control.ask("status", seconds=2)["paused"]


def test_it_listens_on_no_network(controlled: tuple[Launched, Control]) -> None:
    launched, _ = controlled

    assert take(launched.pid, any_process=True).listeners() == ()


def test_what_a_command_says_against_it_is_passed_on(controlled: tuple[Launched, Control]) -> None:
    _, control = controlled

    with pytest.raises(QuiesceFailed) as caught:
        control.ask("quiesce", seconds=2)

    assert "not paused" in str(caught.value.details)


def test_an_engine_that_is_gone_or_stands_still_is_said(
    controlled: tuple[Launched, Control],
) -> None:
    launched, control = controlled
    launched.process.kill()
    launched.process.wait()

    with pytest.raises(QuiesceFailed, match="did not answer"):
        control.ask("status", seconds=2)


def test_somebody_elses_socket_in_its_place_is_not_trusted(
    controlled: tuple[Launched, Control], tmp_path: Path
) -> None:
    _, control = controlled
    open_the_way(Path(control.path))
    Path(control.path).unlink()
    tmp_path.chmod(0o777)
    with another_user():
        impostor = socket.create_server(control.path, family=socket.AF_UNIX)

    with impostor, pytest.raises(QuiesceFailed) as caught:
        control.ask("status", seconds=2)

    assert f"uid {NOBODY} listens there" in str(caught.value.details)


def calls(pid: int, control: Control) -> int:
    answer = Control(pid=pid, path=control.path).ask("groups", seconds=2)
    return int(answer["ranks"][0]["calls"])


def test_it_is_dumped_at_a_still_point_and_goes_on_after_each_restore(
    controlled: tuple[Launched, Control], tmp_path: Path, ended_after: list[int]
) -> None:
    launched, control = controlled
    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True, inflight="drain")
    launched.process.wait(timeout=10)

    original = checkpoint.restore()
    ended_after.append(original.pid)
    clone = checkpoint.restore(isolate="always")
    ended_after.append(clone.pid)

    quiesced = checkpoint.manifest.quiesced
    assert quiesced is not None
    assert (quiesced.workers, quiesced.groups, quiesced.dropped_bytes) == (2, 6, 8192)
    assert quiesced.inflight == "drain"
    for engine in (original, clone):
        status = Control(pid=engine.pid, path=control.path).ask("status", seconds=2)
        assert status == {"paused": False, "by_cria": False}
    assert [calls(original.pid, control) for _ in range(3)] == [2, 3, 4]
    assert calls(clone.pid, control) == 2, "each has a socket of its own at the same path"


def test_a_dump_that_leaves_it_running_lets_it_go_on(
    controlled: tuple[Launched, Control], tmp_path: Path
) -> None:
    launched, control = controlled

    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True, leave_running=True)

    assert checkpoint.manifest.quiesced is not None
    assert not control.ask("status", seconds=2)["paused"]


def test_a_dump_that_fails_lets_it_go_on(
    controlled: tuple[Launched, Control], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, control = controlled
    monkeypatch.setattr("cria.storage.carry.store", fail)

    with pytest.raises(NoSpace):
        cria.dump(launched.pid, tmp_path / "cp", any_process=True)

    assert calls(launched.pid, control) == 2, "it had stood still"
    assert not control.ask("status", seconds=2)["paused"]


def test_one_that_shall_not_be_quiesced_is_not(
    controlled: tuple[Launched, Control], tmp_path: Path
) -> None:
    launched, control = controlled

    checkpoint = cria.dump(
        launched.pid, tmp_path / "cp", any_process=True, leave_running=True, inflight=None
    )

    assert checkpoint.manifest.quiesced is None
    assert "--no-quiesce" in str(checkpoint.manifest.no_quiesce)
    assert calls(launched.pid, control) == 1
