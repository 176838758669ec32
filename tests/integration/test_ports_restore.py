"""Ports of small programs through real CRIU: planned, held, rewritten, restored, and theirs alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from cria.criu import program as binary
from cria.criu.images.directory import CriuImages
from cria.errors import CheckpointMismatch, PortPlanRefused, PortTaken
from cria.network import connection_locks
from cria.network.listeners import clear_port_reuse, verify_listeners
from cria.network.occupancy import occupants
from cria.network.plan import PortPlan
from cria.network.planner import plan
from cria.network.requests import PortRequests
from cria.network.reservation import reserve
from cria.ports import rewrite, sockets_of
from cria.system import processes
from cria.system.netfilter import Netfilter
from cria.system.procfs import tree

pytestmark = [pytest.mark.root]

RESTORES = int(os.environ.get("CRIA_RACES", "200"))


class Images:
    """A small program that was dumped, and raw restores of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.criu = binary.find()
        self.sockets = sockets_of(directory, self.criu)
        self.images = CriuImages(directory, self.criu)
        self.pids = [process.pid for process in self.images.processes]

    def restore(self, made: PortPlan, view: Path) -> subprocess.CompletedProcess[bytes]:
        """Hold, rewrite, restore, seal, check; raises PortTaken when it is not ours alone."""
        shutil.rmtree(view, ignore_errors=True)
        with reserve(made) as held:
            rewrite(self.directory, made, view, criu_binary=self.criu)
            held.open()
            new = connection_locks.needed(self.images, made)
            command = [self.criu, "restore", "-D", view, "-d", "--tcp-established", "-v1"]
            with connection_locks.locked(new):
                done = subprocess.run([*command, "-o", "restore.log"], check=False, timeout=60)
            if done.returncode == 0:
                clear_port_reuse(made)
                verify_listeners(made, self.pids)
        return done

    def end(self) -> None:
        alive = [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]
        if alive and alive[0] == self.pids[0]:
            family = tree(self.pids[0])
            processes.kill(process.pid for process in family)
            gone(process.pid for process in family)


@pytest.fixture
def dumped(programs: Path, tmp_path: Path) -> Iterator[Callable[..., Images]]:
    """Start endpoints.py with a kind and a port, and dump it."""
    made: list[Images] = []

    def dump(kind: str, port: int, connect: bool = False) -> Images:
        log = tmp_path / "program.log"
        with log.open("ab") as out:
            program = subprocess.Popen(
                [sys.executable, programs / "endpoints.py", kind, str(port)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        wait_for(lambda: b"ready" in log.read_bytes())
        client = socket.create_connection(("127.0.0.1", port)) if connect else None
        time.sleep(0.1)
        family = tree(program.pid)
        images = tmp_path / "images"
        images.mkdir()
        command = [binary.find(), "dump", "-t", str(program.pid), "-D", images, "-o", "dump.log"]
        options = ["--tcp-established", "--network-lock", "nftables"]
        done = subprocess.run([*command, *options], check=False, timeout=60)
        gone(process.pid for process in family)
        if client:
            client.close()
        assert done.returncode == 0, (images / "dump.log").read_text()[-2000:]
        made.append(Images(images))
        return made[-1]

    yield dump
    for images in made:
        images.end()
        connection_locks.remove_stale_locks(images.images)


def tables() -> list[str]:
    with Netfilter() as netfilter:
        return netfilter.tables()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pids: Iterable[int]) -> None:
    """Wait until `pids` are free again: a zombie keeps its own, and an init may reap it late."""
    for pid in pids:
        processes.reap([pid])
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists())


def ask(port: int, address: str = "127.0.0.1") -> str:
    with socket.create_connection((address, port), timeout=20) as client:
        return client.makefile().readline().strip()


def test_a_pair_answers_over_its_inner_connection_on_other_ports(
    dumped: Callable[..., Images], tmp_path: Path
) -> None:
    images = dumped("pair", 28100)
    before = (images.directory / "files.img").read_bytes()
    made = plan(images.sockets, occupants(), PortRequests.parse("offset:150"))
    assert {move.kind for move in made} == {"listener", "accepted", "outgoing"}
    assert images.restore(made, tmp_path / "view").returncode == 0
    assert ask(28250) == "alive"
    stands = {each.local.port for each in occupants() if each.owner and not each.in_time_wait}
    assert not stands & {move.old.port for move in made}, "something is left on an old port"
    assert (images.directory / "files.img").read_bytes() == before


def test_a_dual_stack_listener_moves_with_its_mapped_connection(
    dumped: Callable[..., Images], tmp_path: Path
) -> None:
    images = dumped("mapped", 28101)
    made = plan(images.sockets, occupants(), PortRequests.parse("28101=28251"))
    assert images.restore(made, tmp_path / "view").returncode == 0
    assert ask(28251) == "alive"
    assert ask(28251, "::1") == "alive"


def test_a_so_reuseport_group_is_counted_and_stands_complete(
    dumped: Callable[..., Images], tmp_path: Path
) -> None:
    images = dumped("group", 28102)
    made = plan(images.sockets, occupants(), PortRequests.parse("28102=28252"))
    assert len(made.listeners) == 2
    assert images.restore(made, tmp_path / "view").returncode == 0
    assert ask(28252) == "alone"
    verify_listeners(made, images.pids)


def test_a_udp_socket_moves_with_the_one_that_sends_to_it(
    dumped: Callable[..., Images], tmp_path: Path
) -> None:
    images = dumped("udp", 28103)
    made = plan(images.sockets, occupants(), PortRequests.parse("28103=28253"))
    assert images.restore(made, tmp_path / "view").returncode == 0
    assert ask(28253) == "alive"


def test_a_client_from_outside_is_hung_up_on_in_the_copy(
    dumped: Callable[..., Images], tmp_path: Path
) -> None:
    images = dumped("outside", 28104, connect=True)
    made = plan(images.sockets, occupants(), PortRequests.parse("28104=28254"))
    assert [move.closes for move in made if move.kind == "client"] == [True]
    with pytest.raises(PortPlanRefused, match="1 connection"):
        plan(images.sockets, occupants(), clients="refuse")
    assert images.restore(made, tmp_path / "view").returncode == 0
    wait_for(lambda: b"hung up" in (tmp_path / "program.log").read_bytes())
    assert ask(28254) == "alone"


def test_the_plan_of_another_checkpoint_is_refused(
    dumped: Callable[..., Images], tmp_path: Path
) -> None:
    images = dumped("pair", 28105)
    made = plan(images.sockets, occupants(), PortRequests.parse("28105=28255"))
    rewrite(images.directory, made, tmp_path / "view", criu_binary=images.criu)
    with pytest.raises(CheckpointMismatch):
        rewrite(tmp_path / "view", made, tmp_path / "again", criu_binary=images.criu)


def test_a_listener_with_so_reuseport_is_found_before_the_restore(
    dumped: Callable[..., Images], tmp_path: Path
) -> None:
    images = dumped("pair", 28106)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 28256))
        other.listen()
        made = plan(images.sockets, (), PortRequests.parse("28106=28256"))
        with pytest.raises(PortTaken) as caught:
            images.restore(made, tmp_path / "view")
        assert f"PID {os.getpid()}" in str(caught.value.details)
    assert images.restore(made, tmp_path / "view").returncode == 0
    assert ask(28256) == "alive"


def test_full_queues_move_too_and_no_lock_is_left(
    dumped: Callable[..., Images], tmp_path: Path
) -> None:
    images = dumped("queued", 28107)
    assert connection_locks.stale_tables(images.images), (
        "CRIU has locked nothing: this test shows nothing"
    )
    made = plan(images.sockets, occupants(), PortRequests.parse("offset:150"))
    assert connection_locks.needed(images.images, made)
    before = set(tables())
    assert images.restore(made, tmp_path / "view").returncode == 0
    assert ask(28257) == "alive"
    assert set(tables()) - before == set()
    assert not connection_locks.stale_tables(images.images), (
        "CRIU removes its table with the first restore"
    )


def test_an_empty_established_pair_needs_no_lock(dumped: Callable[..., Images]) -> None:
    images = dumped("pair", 28108)
    made = plan(images.sockets, occupants(), PortRequests.parse("offset:150"))
    assert connection_locks.needed(images.images, made) == ()
    assert connection_locks.remove_stale_locks(images.images, made) == 1
    assert connection_locks.remove_stale_locks(images.images, made) == 0


@pytest.mark.many
def test_no_hostile_binder_ever_shares_a_restored_port(
    dumped: Callable[..., Images], programs: Path, tmp_path: Path
) -> None:
    images = dumped("pair", 28110)
    hostile = subprocess.Popen(
        [sys.executable, programs / "hostile_binder.py", "28260", "28263"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert hostile.stdout is not None
    assert hostile.stdout.readline() == "ready\n"
    outcomes = {"restored": 0, "port taken": 0, "CRIU refused": 0}
    chosen = random.Random(1)
    try:
        for _ in range(RESTORES):
            target = chosen.randint(28260, 28263)
            while (outcome := attempt(images, target, tmp_path / "view")) != "restored":
                outcomes[outcome] += 1
            outcomes[outcome] += 1
    finally:
        hostile.send_signal(signal.SIGTERM)
        report = hostile.stdout.read().strip()
        hostile.wait(timeout=60)
    print(outcomes, report)
    assert outcomes["restored"] == RESTORES
    assert int(report.split()[1]) > RESTORES, "the hostile binder did nothing"
    assert not [
        each for each in occupants() if 28260 <= each.local.port <= 28263 and not each.in_time_wait
    ]


def attempt(images: Images, target: int, view: Path) -> str:
    """Restore to `target` once; when it stands, nobody else may be there, then and later."""
    made = plan(images.sockets, (), PortRequests.parse({28110: target}))
    try:
        if images.restore(made, view).returncode != 0:
            return "CRIU refused"
        for _ in range(5):
            assert ask(target) == "alive"
            verify_listeners(made, images.pids)
    except PortTaken:
        return "port taken"
    else:
        return "restored"
    finally:
        images.end()
