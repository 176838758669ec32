"""Each blocker that a small program can make: the doctor names it, and CRIU really fails on it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cria
from cria.engine.inventory.collect import collect_inventory
from cria.engine.launch.launcher import Launched
from cria.errors import CriaError, EngineBlocked
from cria.operations.checks import preflight
from cria.operations.checks.engine import ENGINE_ADVICE, ENGINE_CHECKS
from cria.operations.checks.rows import Row

from .conftest import wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]
Start = Callable[..., Launched]
PTRACE_SEIZE = 0x4206
NAMESPACES = {
    "net": "40000000",
    "mnt": "20000",
    "uts": "4000000",
    "ipc": "8000000",
    "user": "10000000",
}


def rows(pid: int) -> list[Row]:
    inventory = collect_inventory(pid, any_process=True)
    return [row for check in (*ENGINE_CHECKS, *ENGINE_ADVICE) for row in check(inventory)]


def failed(pid: int) -> list[Row]:
    return [row for row in rows(pid) if row.level == "fail"]


def what_criu_does(pid: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Dump without the preflight, restore if that works: how far CRIU gets."""
    monkeypatch.setattr(preflight, "dump", lambda *_: None)
    try:
        checkpoint = cria.dump(pid, place, any_process=True)
    except CriaError as error:
        print(error, error.details)
        return "refuses"
    finally:
        monkeypatch.undo()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    try:
        engine = checkpoint.restore(isolate="never")
    except CriaError as error:
        print(error, error.details)
        return "cannot restore"
    engine.stop(seconds=1)
    return "works"


def blocked(pid: int, place: Path) -> EngineBlocked:
    """The error of a dump that the preflight stops."""
    with pytest.raises(EngineBlocked) as caught:
        cria.dump(pid, place, any_process=True)
    assert not place.exists()
    return caught.value


BLOCKERS = {
    "MPTCP": (("mptcp", "{port}"), "a socket of protocol MPTCP", "refuses"),
    "VSOCK": (("vsock",), "a socket of protocol AF_VSOCK", "refuses"),
    "unread netlink messages": (("netlink_unread",), "has not read its netlink", "refuses"),
    "corked UDP": (("udp_cork", "{port}"), "has not sent what was written", "refuses"),
    "file of another mount namespace": (("foreign_mount", "{dir}"), "another mount", "refuses"),
    "large deleted file": (
        ("deleted", "{dir}/ghost", 513 << 20, 513 << 20),
        "a large deleted file",
        "refuses",
    ),
    "System V shared memory": (("sysv_shm",), "System V shared memory", "refuses"),
    "perf counter": (("perf",), "a file of kind perf_event", "refuses"),
    "userfaultfd": (("userfault",), "a file of kind userfaultfd", "refuses"),
    "device": (("opened", "/dev/fuse", 0), "has the device /dev/fuse open", "refuses"),
    "dead first thread": (("dead_leader",), "has lost its first thread", "refuses"),
    "network namespace": (
        ("namespace_child", NAMESPACES["net"]),
        "has namespaces of its own",
        "cannot restore",
    ),
    "mount namespace": (
        ("namespace_child", NAMESPACES["mnt"]),
        "has namespaces of its own",
        "cannot restore",
    ),
    "uts namespace": (("namespace_child", NAMESPACES["uts"]), "namespaces of its own", "refuses"),
    "ipc namespace": (("namespace_child", NAMESPACES["ipc"]), "namespaces of its own", "refuses"),
    "user namespace": (("namespace_child", NAMESPACES["user"]), "namespaces of its own", "refuses"),
}
HELD_BY_A_CHILD = {name for name in BLOCKERS if name.endswith(" namespace") and "file" not in name}
HELD_WITHOUT_A_DESCRIPTOR = {*HELD_BY_A_CHILD, "System V shared memory", "dead first thread"}


@pytest.mark.parametrize("name", BLOCKERS)
def test_a_blocker_is_named_with_its_process_and_stops_a_dump(
    name: str,
    start: Start,
    free_port: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, said, criu = BLOCKERS[name]
    made = [str(word).format(port=free_port(), dir=tmp_path) for word in words]
    if made[0] == "opened" and not Path(made[1]).exists():
        pytest.skip(f"this host has no {made[1]}")
    launched = start("blocker.py", *made)

    (row,) = failed(launched.pid)
    error = blocked(launched.pid, tmp_path / "checkpoint")

    assert said in f"{row.subject} {row.value}"
    assert row.remedy
    assert str(row.pid) in row.subject + row.value
    assert (row.pid == launched.pid) == (name not in HELD_BY_A_CHILD)
    assert (row.fd is None) == (name in HELD_WITHOUT_A_DESCRIPTOR)
    if row.fd is not None:
        assert f"fd {row.fd}" in row.value
    assert row.subject in error.message
    assert error.remedy == row.remedy
    assert what_criu_does(launched.pid, tmp_path / "anyway", monkeypatch) == criu


HARMLESS = {
    "nothing": ("nothing",),
    "netlink": ("netlink",),
    "packet socket": ("packet",),
    "raw socket": ("raw",),
    "both sides of a terminal": ("terminal",),
    "memfd": ("memfd",),
    "pidfd": ("pidfd",),
    "inotify": ("inotify", "{dir}"),
    "namespace file": ("opened", "/proc/self/ns/net", 0),
    "memory device": ("opened", "/dev/random", 0),
    "small deleted file": ("deleted", "{dir}/ghost", 3 << 20, 3 << 20),
    "large deleted file of holes": ("deleted", "{dir}/ghost", 600 << 20, 0),
    "zombie": ("zombie",),
    "stopped child": ("stopped",),
    "UDP with unread data": ("udp_unread", "{port}"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_criu_can_do_is_no_blocker(
    name: str,
    start: Start,
    free_port: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [str(word).format(port=free_port(), dir=tmp_path) for word in HARMLESS[name]]
    launched = start("blocker.py", *words)

    assert failed(launched.pid) == []
    assert what_criu_does(launched.pid, tmp_path / "checkpoint", monkeypatch) == "works"


def test_unread_datagrams_are_told_as_lost(start: Start, free_port: Callable[[], int]) -> None:
    launched = start("blocker.py", "udp_unread", free_port())

    (row,) = [row for row in rows(launched.pid) if row.level == "warn"]

    assert "lost" in row.value


def test_a_connection_with_one_end_outside_is_named_with_both_ends_and_their_owners(
    start: Start, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        launched = start("blocker.py", "tcp_out", port)
        outside, (_, near) = server.accept()

        (row,) = failed(launched.pid)
        blocked(launched.pid, tmp_path / "checkpoint")
        outside.close()
        wait_for(lambda: failed(launched.pid) == [])

    assert f"127.0.0.1:{near} -> 127.0.0.1:{port}" in row.value
    assert f"process {launched.pid}" in row.value and f"fd {row.fd}" in row.value
    assert f"PID {os.getpid()}" in row.value
    assert [r.subject for r in rows(launched.pid) if r.level == "warn"] == [
        "a connection is half closed"
    ]


def test_half_of_a_unix_connection_is_named_with_who_holds_the_other(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "server"))
        server.listen()
        launched = start("blocker.py", "unix_stream", tmp_path / "server")
        outside, _ = server.accept()

        (row,) = failed(launched.pid)
        error = blocked(launched.pid, tmp_path / "checkpoint")
        criu = what_criu_does(launched.pid, tmp_path / "anyway", monkeypatch)
        outside.close()

        assert f"process {launched.pid}" in row.value and f"fd {row.fd}" in row.value
        assert f"PID {os.getpid()}" in row.value
        assert "one end inside" in error.message
        assert criu == "refuses"
        assert failed(launched.pid) == []
        assert what_criu_does(launched.pid, tmp_path / "closed", monkeypatch) == "works"


def test_a_unix_connection_that_nobody_outside_has_accepted_is_named(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "server"))
        server.listen()
        launched = start("blocker.py", "unix_stream", tmp_path / "server")

        (row,) = failed(launched.pid)
        blocked(launched.pid, tmp_path / "checkpoint")
        criu = what_criu_does(launched.pid, tmp_path / "anyway", monkeypatch)

    assert f"process {launched.pid}" in row.value and f"fd {row.fd}" in row.value
    assert criu == "cannot restore"


def test_one_that_waits_at_the_engines_own_listener_is_no_blocker(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = start("blocker.py", "unix_to_itself", tmp_path / "server")

    assert failed(launched.pid) == []
    assert what_criu_does(launched.pid, tmp_path / "checkpoint", monkeypatch) == "works"


def test_a_datagram_socket_may_lead_outside(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        launched = start("blocker.py", "unix_dgram", tmp_path / "log")

        assert failed(launched.pid) == []
        assert what_criu_does(launched.pid, tmp_path / "checkpoint", monkeypatch) == "works"


def test_connections_that_nobody_accepts_are_named(
    start: Start, free_port: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    launched = start("blocker.py", "listen", port)
    with socket.create_connection(("127.0.0.1", port)):
        wait_for(lambda: failed(launched.pid) != [])
        (row,) = failed(launched.pid)
        criu = what_criu_does(launched.pid, tmp_path / "checkpoint", monkeypatch)

    assert f"1 at 127.0.0.1:{port}" in row.value
    assert "--skip-in-flight" in (row.remedy or "")
    assert criu == "refuses"


def test_a_tracer_is_named(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = start("blocker.py", "nothing")
    assert ctypes.CDLL(None).ptrace(PTRACE_SEIZE, launched.pid, None, None) == 0

    (row,) = failed(launched.pid)
    blocked(launched.pid, tmp_path / "checkpoint")

    assert f"PID {os.getpid()}" in row.value
    assert row.remedy == f"end the debugger or profiler: kill {os.getpid()}"
    assert what_criu_does(launched.pid, tmp_path / "anyway", monkeypatch) == "refuses"


@pytest.fixture
def in_a_terminal(programs: Path, tmp_path: Path) -> Iterator[int]:
    """The PID of a program that a shell started in a terminal, as people do."""
    ours, theirs = pty.openpty()
    told = tmp_path / "pid"
    script = f"{sys.executable} {programs / 'blocker.py'} nothing & echo $! >{told}; wait"
    shell = subprocess.Popen(
        ["/bin/sh", "-c", script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    wait_for(lambda: b"ready" in os.read(ours, 1024))
    pid = int(told.read_text())
    yield pid
    for each in (pid, shell.pid):
        try:
            os.kill(each, 9)
        except ProcessLookupError:
            continue
    shell.wait()
    os.close(ours)


def test_a_terminal_is_named_because_it_would_be_dumped_and_never_restored(
    in_a_terminal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = failed(in_a_terminal)
    error = blocked(in_a_terminal, tmp_path / "checkpoint")

    assert "/dev/pts/" in row.value
    assert "cria run" in (error.remedy or "")
    criu = what_criu_does(in_a_terminal, tmp_path / "anyway", monkeypatch)
    assert criu == "cannot restore"


def test_a_log_that_is_not_open_for_appending_is_told(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a line\n")
    written = start("blocker.py", "opened", log, os.O_WRONLY)
    appended = start("blocker.py", "opened", log, os.O_WRONLY | os.O_APPEND)

    (row,) = [row for row in rows(written.pid) if row.level == "warn"]

    assert str(log) in row.value
    assert [row for row in rows(appended.pid) if row.level == "warn"] == []


def test_the_command_tells_blockers_size_and_time_and_ends_with_the_status_of_a_dump(
    start: Start, tmp_path: Path
) -> None:
    free, blocked_one = start("blocker.py", "nothing"), start("blocker.py", "perf")

    def told(launched: Launched) -> tuple[int, dict[str, Any]]:
        words = ["doctor", launched.pid, "--any-process", "--output", tmp_path, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "cria", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, json.loads(done.stdout)

    status, document = told(free)
    subjects = {finding["subject"]: finding for finding in document["findings"]}
    assert (status, document["ready"], document["target"]) == (0, True, str(free.pid))
    assert "MiB" in subjects["expected size"]["value"]
    assert str(tmp_path) in subjects["expected time"]["value"]

    status, document = told(blocked_one)
    (failing,) = [finding for finding in document["findings"] if finding["level"] == "fail"]
    assert status == document["exit_status"] == EngineBlocked.exit_status
    assert (failing["pid"], failing["code"]) == (blocked_one.pid, "engine-blocked")
    assert isinstance(failing["fd"], int) and failing["remedy"]


def test_every_blocker_is_in_one_error(start: Start, programs: Path, tmp_path: Path) -> None:
    launched = start("blocker.py", "perf")
    assert ctypes.CDLL(None).ptrace(PTRACE_SEIZE, launched.pid, None, None) == 0

    error = blocked(launched.pid, tmp_path / "checkpoint")

    assert "being traced" in error.message
    assert "perf_event" in (error.details or "")
