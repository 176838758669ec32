"""Clones live beside their original and beside each other, and share nothing by accident."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

import cria
from cria.engine.launch.launcher import Launched
from cria.errors import NoSpace, PortTaken, PortUnknown, RestoreFailed
from cria.model.inventory import Role
from cria.operations import replicas

from .conftest import ask, end, wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]


@pytest.fixture
def original(
    start: Callable[..., Launched], free_port: Callable[[], int], tmp_path: Path
) -> tuple[Launched, int, cria.Checkpoint]:
    """A little engine that runs on after its dump; three questions were answered before."""
    port = free_port()
    launched = start("little_engine.py", port, tmp_path)
    for _ in range(3):
        ask(port)
    checkpoint = cria.dump(
        launched.pid, tmp_path / "checkpoint", any_process=True, leave_running=True
    )
    return launched, port, checkpoint


@pytest.fixture
def published(
    original: tuple[Launched, int, cria.Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pass the little engine's listener off as an HTTP API, which nobody asks for its health."""
    _, port, checkpoint = original
    inventory = checkpoint.manifest.inventory
    api = Role(name="HTTP API", confidence="certain")
    sockets = tuple(
        replace(s, role=api) if s.state == "LISTEN" and s.local.port == port else s
        for s in inventory.sockets
    )
    inventory = replace(inventory, sockets=sockets)
    checkpoint.manifest = replace(
        checkpoint.manifest,
        inventory=inventory,
        api_endpoints=tuple(s.local for s in inventory.api_listeners()),
    )
    monkeypatch.setattr("cria.engine.health.wait_until_healthy", lambda *_a, **_k: None)


def clone(checkpoint: cria.Checkpoint, old: int, new: int, ended_after: list[int]) -> cria.Engine:
    engine = checkpoint.restore(ports=[f"{old}={new}", "fresh"])
    ended_after.append(engine.pid)
    return engine


def test_clones_and_original_each_go_their_own_way(
    original: tuple[Launched, int, cria.Checkpoint],
    free_port: Callable[[], int],
    ended_after: list[int],
) -> None:
    _, port, checkpoint = original
    first, second = free_port(), free_port()
    clone(checkpoint, port, first, ended_after)
    clone(checkpoint, port, second, ended_after)

    for _ in range(5):
        ask(first)
    answers = {name: ask(name) for name in (port, first, second)}

    assert {name: a["answered"] for name, a in answers.items()} == {port: 4, first: 9, second: 4}
    assert {name: a["shared"] for name, a in answers.items()} == {port: 4, first: 9, second: 4}
    assert all(a["tcp"] and a["unix"] and a["pipe"] for a in answers.values())


def test_a_clone_has_namespaces_of_its_own(
    original: tuple[Launched, int, cria.Checkpoint],
    free_port: Callable[[], int],
    ended_after: list[int],
) -> None:
    launched, port, checkpoint = original
    engine = clone(checkpoint, port, free_port(), ended_after)

    def namespace(pid: int, kind: str) -> int:
        return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino

    assert engine.pid != launched.pid
    for kind in ("pid", "mnt", "ipc"):
        assert namespace(engine.pid, kind) != namespace(launched.pid, kind)
    assert namespace(engine.pid, "net") == namespace(launched.pid, "net")
    shared = {p.name for p in Path(f"/proc/{engine.pid}/root/dev/shm").iterdir()}
    assert shared == {Path(f.path).name for f in checkpoint.manifest.saved_files}


def test_the_original_keeps_its_socket_path(
    original: tuple[Launched, int, cria.Checkpoint],
    free_port: Callable[[], int],
    ended_after: list[int],
    tmp_path: Path,
) -> None:
    """CRIU unlinks a path and binds it anew: in a clone that happens to a copy."""
    _, port, checkpoint = original
    before = (tmp_path / "little.sock").stat().st_ino

    engine = clone(checkpoint, port, free_port(), ended_after)

    assert (tmp_path / "little.sock").stat().st_ino == before
    inside = Path(f"/proc/{engine.pid}/root{tmp_path}/little.sock")
    assert inside.is_socket()
    assert inside.stat().st_ino != before


def test_a_clone_writes_its_own_log(
    original: tuple[Launched, int, cria.Checkpoint],
    free_port: Callable[[], int],
    ended_after: list[int],
) -> None:
    launched, port, checkpoint = original
    size = launched.log.stat().st_size
    new = free_port()
    engine = clone(checkpoint, port, new, ended_after)

    with Path(f"/proc/{engine.pid}/fd/1").open("ab") as output:
        output.write(b"from the clone\n")

    assert launched.log.stat().st_size == size
    assert Path(f"{launched.log}.{new}").read_text() == "from the clone\n"


def test_killing_a_clone_or_the_original_leaves_the_others_alone(
    original: tuple[Launched, int, cria.Checkpoint],
    free_port: Callable[[], int],
    ended_after: list[int],
) -> None:
    launched, port, checkpoint = original
    first, second = free_port(), free_port()
    one = clone(checkpoint, port, first, ended_after)
    clone(checkpoint, port, second, ended_after)

    end(one.pid)
    assert ask(port)["tcp"]
    assert ask(second)["tcp"]
    end(launched.pid)
    launched.process.wait(timeout=60)

    assert ask(second)["unix"]


def test_a_stopped_clone_leaves_no_process_behind(
    original: tuple[Launched, int, cria.Checkpoint],
    free_port: Callable[[], int],
    ended_after: list[int],
) -> None:
    _, port, checkpoint = original
    engine = clone(checkpoint, port, free_port(), ended_after)
    init = int(
        next(
            line.split()[1]
            for line in Path(f"/proc/{engine.pid}/status").read_text().splitlines()
            if line.startswith("PPid")
        )
    )

    engine.stop(seconds=5)

    wait_for(lambda: not Path(f"/proc/{init}").exists())
    assert not Path(f"/proc/{engine.pid}").exists()


def test_four_clones_at_once_on_a_range_of_ports(
    original: tuple[Launched, int, cria.Checkpoint], ended_after: list[int]
) -> None:
    _, port, checkpoint = original
    begin = 21400

    fleet = checkpoint.restore([f"{port}={begin}..{begin + 3}", "fresh"], replicas=4)
    ended_after.extend(engine.pid for engine in fleet)

    assert [engine.ports_moved for engine in fleet] == [1] * 4
    assert [ask(begin + number)["answered"] for number in range(4)] == [4] * 4
    assert ask(port)["answered"] == 4


def test_too_little_memory_is_said_before_the_first_clone(
    original: tuple[Launched, int, cria.Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port, checkpoint = original
    monkeypatch.setattr(
        "cria.operations.replicas.available_memory", lambda: 2 * checkpoint.memory_bytes()
    )

    with pytest.raises(NoSpace, match="3 clones"):
        checkpoint.restore(replicas=3)

    assert ask(port)["tcp"]


def test_a_clone_that_fails_takes_none_with_it_unless_asked(
    original: tuple[Launched, int, cria.Checkpoint],
    ended_after: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, port, checkpoint = original
    real = replicas._start

    def second_fails(clone: object, cancelled: object) -> cria.Engine:
        if clone.plan.new_port(port) in (21451, 21461):  # type: ignore[attr-defined]
            raise RestoreFailed("not this one")
        return real(clone, cancelled)  # type: ignore[arg-type]

    monkeypatch.setattr(replicas, "_start", second_fails)
    heard: list[object] = []
    some = checkpoint.restore([f"{port}=21450..21452"], replicas=3, listener=heard.append)
    ended_after.extend(engine.pid for engine in some)

    assert sorted(engine.ports_moved for engine in some) == [1, 1]
    assert any("not this one" in getattr(event, "message", "") for event in heard)
    assert ask(21450)["tcp"] and ask(21452)["tcp"]
    with pytest.raises(RestoreFailed, match="not this one"):
        checkpoint.restore([f"{port}=21460..21462"], replicas=3, all_or_none=True)
    for number in (21460, 21462):
        with pytest.raises(ConnectionRefusedError):
            ask(number)


def test_a_clone_is_dumped_and_restored_again_three_generations_deep(
    original: tuple[Launched, int, cria.Checkpoint],
    free_port: Callable[[], int],
    ended_after: list[int],
    tmp_path: Path,
) -> None:
    _, port, checkpoint = original
    answered = 3
    for generation in range(1, 4):
        new = free_port()
        engine = clone(checkpoint, port, new, ended_after)
        assert ask(new)["answered"] == answered + 1
        answered += 1

        checkpoint = cria.dump(engine.pid, tmp_path / f"generation-{generation}", any_process=True)
        with pytest.raises(ConnectionRefusedError):
            ask(new)
        assert [file.path for file in checkpoint.manifest.saved_files if "psm_" in file.path]
        port = new

    last = free_port()
    clone(checkpoint, port, last, ended_after)
    answer = ask(last)
    assert answer["answered"] == answer["shared"] == answered + 1
    assert answer["tcp"] and answer["unix"] and answer["pipe"]


def published_at(engine: cria.Engine) -> int:
    (port,) = engine.ports.values()
    return port


def test_clones_with_a_network_of_their_own_keep_every_port_and_are_reached_by_theirs(
    original: tuple[Launched, int, cria.Checkpoint],
    published: None,
    free_port: Callable[[], int],
    ended_after: list[int],
) -> None:
    launched, port, checkpoint = original
    first, second = free_port(), free_port()
    engines = [
        checkpoint.restore(ports={port: new}, isolate="net", wait_seconds=0)
        for new in (first, second)
    ]
    ended_after.extend(engine.pid for engine in engines)

    answers = [ask(first), ask(second), ask(first)]

    assert [answer["answered"] for answer in answers] == [4, 4, 5]
    assert {answer["ends"][0] for answer in answers} == {port}
    assert [engine.ports for engine in engines] == [{port: first}, {port: second}]
    nets = {Path(f"/proc/{pid}/ns/net").stat().st_ino for pid in [launched.pid, *ended_after]}
    assert len(nets) == 3
    assert ask(port)["answered"] == 4


def test_the_forwarder_ends_with_its_clone(
    original: tuple[Launched, int, cria.Checkpoint],
    published: None,
    free_port: Callable[[], int],
    ended_after: list[int],
) -> None:
    _, port, checkpoint = original
    new = free_port()
    engine = checkpoint.restore(ports={port: new}, isolate="net", wait_seconds=0)
    ended_after.append(engine.pid)
    assert ask(new)["tcp"]

    end(engine.pid)

    def refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", new)) != 0

    wait_for(refused)


def test_a_taken_port_is_said_before_a_clone_with_its_own_network_is_made(
    original: tuple[Launched, int, cria.Checkpoint], published: None
) -> None:
    _, port, checkpoint = original

    with pytest.raises(PortTaken, match=str(port)):
        checkpoint.restore(isolate="net", wait_seconds=0)
    with pytest.raises(PortUnknown, match="9"):
        checkpoint.restore(ports={9: 21480}, isolate="net", wait_seconds=0)

    assert ask(port)["tcp"]


def test_a_fleet_may_have_networks_of_its_own(
    original: tuple[Launched, int, cria.Checkpoint], published: None, ended_after: list[int]
) -> None:
    _, port, checkpoint = original

    fleet = checkpoint.restore([f"{port}=21490..21491"], replicas=2, isolate="net", wait_seconds=0)
    ended_after.extend(engine.pid for engine in fleet)

    assert [ask(published_at(engine))["answered"] for engine in fleet] == [4, 4]
    assert [published_at(engine) for engine in fleet] == [21490, 21491]


def test_of_two_restores_to_one_port_at_the_same_moment_one_wins_and_one_says_why(
    original: tuple[Launched, int, cria.Checkpoint],
    free_port: Callable[[], int],
    ended_after: list[int],
) -> None:
    _, port, checkpoint = original
    for _ in range(5):
        new = free_port()
        words = [str(checkpoint.path), "-p", f"{port}={new}", "--isolate", "always", "--json"]
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "cria", "restore", *words, "--progress", "none"],
                stdout=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        answers = [json.loads(each.communicate()[0]) for each in both]
        ended_after.extend(answer["pid"] for answer in answers if "pid" in answer)

        assert sorted(each.returncode for each in both) == [0, 51]
        error = next(answer["error"] for answer in answers if "error" in answer)
        assert error["code"] == "port-taken"
        assert str(new) in error["message"]
        assert ask(new)["answered"] == 4


def test_a_dry_run_plans_every_clone_and_touches_nothing(
    original: tuple[Launched, int, cria.Checkpoint],
) -> None:
    _, port, checkpoint = original
    words = [str(checkpoint.path), "--replicas", "3", "-p", f"{port}=21510..21512", "--dry-run"]

    done = subprocess.run(
        [sys.executable, "-m", "cria", "restore", *words, "--json"],
        capture_output=True,
        check=True,
    )

    clones = json.loads(done.stdout)["clones"]
    assert [clone["ports"] for clone in clones] == [{str(port): 21510 + n} for n in range(3)]
    for number in (21510, 21511, 21512):
        with pytest.raises(ConnectionRefusedError):
            ask(number)


def test_clones_of_which_no_port_is_said_stand_beside_the_original(
    original: tuple[Launched, int, cria.Checkpoint],
) -> None:
    _, port, checkpoint = original

    done = subprocess.run(
        [sys.executable, "-m", "cria", "restore", checkpoint.path, "--replicas", "2", "--json"],
        capture_output=True,
        check=True,
    )

    engines = json.loads(done.stdout)["engines"]
    try:
        assert len({engine["pid"] for engine in engines}) == 2
        assert all(Path(f"/proc/{engine['pid']}").exists() for engine in engines)
        assert ask(port)
    finally:
        for engine in engines:
            end(engine["pid"])


def test_a_log_that_others_may_read_does_not_stop_a_clone(
    start: Callable[..., Launched],
    free_port: Callable[[], int],
    ended_after: list[int],
    tmp_path: Path,
) -> None:
    """CRIU refuses a log whose mode is not the recorded one, so the clone's own log gets that mode."""
    port, new = free_port(), free_port()
    launched = start("little_engine.py", port, tmp_path)
    launched.log.chmod(0o644)
    checkpoint = cria.dump(
        launched.pid, tmp_path / "checkpoint", any_process=True, leave_running=True
    )

    clone(checkpoint, port, new, ended_after)

    assert ask(new)["tcp"]
    (own,) = tmp_path.glob(f"{launched.log.name}.*")
    assert own.stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "a:b,lowerdir=c\\"])
def test_a_directory_with_a_name_that_overlayfs_would_take_for_options(
    start: Callable[..., Launched],
    free_port: Callable[[], int],
    ended_after: list[int],
    tmp_path: Path,
    name: str,
) -> None:
    port, new = free_port(), free_port()
    directory = tmp_path / name
    directory.mkdir()
    launched = start("little_engine.py", port, directory)
    before = (directory / "little.sock").stat().st_ino
    checkpoint = cria.dump(
        launched.pid, tmp_path / "checkpoint", any_process=True, leave_running=True
    )

    clone(checkpoint, port, new, ended_after)

    assert ask(new)["unix"] and ask(port)["unix"]
    assert (directory / "little.sock").stat().st_ino == before
