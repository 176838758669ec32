"""A program runs while its memory still arrives: every byte is compared, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cria
from cria.engine.launch.launcher import Launched
from cria.errors import EngineBusy
from cria.events import StepStarted
from cria.memory.lazy import client
from cria.memory.lazy.protocol import PROCESS_NAME

from .conftest import wait_for

pytestmark = pytest.mark.root
MIB = 192
RIGHT = {"wrong": [], "of": MIB}


def ask(port: int, *words: object) -> Any:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(" ".join(map(str, words)).encode() + b"\n")
        line = connection.makefile().readline()
    return json.loads(line) if line else None


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """One checkpoint for all tests, and the port that its program listens on."""
    place = tmp_path_factory.mktemp("lazy")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    program = Path(__file__).parents[1] / "programs" / "much_memory.py"
    from cria.engine.launch.launcher import launch

    log = place / "program.log"
    launched = launch([sys.executable, str(program), str(port), str(MIB)], log)
    wait_for(lambda: "ready" in log.read_text(), seconds=30)
    cria.dump(launched.pid, place / "checkpoint", any_process=True)
    launched.process.wait(timeout=60)
    return place / "checkpoint", port


@pytest.fixture
def restore(stored: tuple[Path, int]) -> Iterator[Callable[..., cria.Engine]]:
    engines: list[cria.Engine] = []

    def run(checkpoint: Path = stored[0], **options: Any) -> cria.Engine:
        engines.append(cria.restore(checkpoint, lazy=True, **options))
        return engines[-1]

    yield run
    for engine in engines:
        with contextlib.suppress(cria.CriaError, ProcessLookupError):
            engine.stop(seconds=5)


class HoldUp:
    """Stops the page server before it sends what nobody asked for: from then on the engine gets no memory."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.guardian = self.server = 0

    def __call__(self, event: object) -> None:
        if not isinstance(event, StepStarted) or event.step != "load-remaining-memory":
            return
        wait_for(lambda: client.find_supervisor([self._pid]) is not None)
        self.guardian = client.find_supervisor([self._pid]) or 0
        children = Path(f"/proc/{self.guardian}/task/{self.guardian}/children").read_text()
        self.server = int(children.split()[0])
        os.kill(self.server, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.server, signal.SIGCONT)

    def is_over(self) -> bool:
        return not is_alive(self.guardian) and not is_alive(self.server)


@pytest.fixture
def held_up(stored: tuple[Path, int]) -> HoldUp:
    return HoldUp(cria.open_checkpoint(stored[0]).manifest.inventory.root.pid)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_every_byte_is_right_while_memory_arrives_and_after(
    stored: tuple[Path, int], restore: Callable[..., cria.Engine]
) -> None:
    _, port = stored
    engine = restore()

    assert ask(port, "check") == RIGHT
    wait_for(lambda: client.find_supervisor([engine.pid]) is None)
    assert ask(port, "check") == RIGHT


def test_the_page_server_ends_when_all_has_arrived(
    restore: Callable[..., cria.Engine], held_up: HoldUp
) -> None:
    engine = restore(listener=held_up)
    assert "um" in flags_of(engine.pid)
    held_up.go_on()

    wait_for(held_up.is_over)

    assert is_alive(engine.pid)
    assert "um" not in flags_of(engine.pid), (
        "the kernel still waits for somebody to fill its memory"
    )


def flags_of(pid: int) -> set[str]:
    """The flags of all mappings (proc(5), smaps); um: missing pages are asked for."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    return {flag for line in lines if line.startswith("VmFlags:") for flag in line.split()[1:]}


@pytest.mark.parametrize("change", ["give_back", "move", "exchange", "fork"])
def test_mappings_that_change_meanwhile_hold_what_they_should(
    stored: tuple[Path, int], restore: Callable[..., cria.Engine], change: str
) -> None:
    _, port = stored
    engine = restore()

    answer = ask(port, change)

    assert not answer.get("wrong"), answer
    assert ask(port, "check") == RIGHT
    wait_for(lambda: client.find_supervisor([engine.pid]) is None)
    assert ask(port, "check") == RIGHT


def test_a_child_that_outlives_its_parent_gets_its_memory(
    stored: tuple[Path, int], restore: Callable[..., cria.Engine]
) -> None:
    _, port = stored
    engine = restore()

    child = ask(port, "outlive")["pid"]
    try:
        wait_for(lambda: not is_alive(engine.pid))
        assert ask(port, "check") == RIGHT
    finally:
        os.kill(child, signal.SIGKILL)
        # Its session has the number that the next restore needs as a PID.
        wait_for(lambda: not Path(f"/proc/{child}").exists())


@pytest.mark.parametrize("mib", [64, 0])
def test_a_process_that_has_all_its_memory_does_not_wait(
    start: Callable[..., Launched], tmp_path: Path, free_port: Callable[[], int], mib: int
) -> None:
    """Before the engine has answered only faults are served: its parent, with 64 MiB, misses most memory.

    With 0 MiB no process misses anything, and the page server has to end although nobody has answered.
    """
    port = free_port()
    launched = start("two_memories.py", port, mib)
    checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    launched.process.wait(timeout=60)
    seconds: list[float] = []

    def ask_the_child(event: object) -> None:
        if isinstance(event, StepStarted) and event.step == "load-remaining-memory":
            seconds.extend(sum(ask(port).values()) for _ in range(5))

    engine = checkpoint.restore(lazy=True, listener=ask_the_child)
    try:
        assert len(seconds) == 5 and max(seconds) < 5, seconds
    finally:
        engine.stop(seconds=1)


def test_a_program_without_lazy_memory_is_restored(
    start: Callable[..., Launched], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """CRIU loads locked memory itself."""
    port = free_port()
    launched = start("much_memory.py", port, MIB, "locked")
    checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    launched.process.wait(timeout=60)

    engine = checkpoint.restore(lazy=True)
    try:
        assert ask(port, "check") == RIGHT
    finally:
        engine.stop(seconds=1)


def test_an_answer_that_takes_longer_than_all_memory_does_no_harm(
    restore: Callable[..., cria.Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cria.memory.lazy.client.ANSWER_SECONDS", 0.0)

    def wait_for_all(event: object) -> None:
        if isinstance(event, StepStarted) and event.step == "load-remaining-memory":
            time.sleep(3)

    engine = restore(listener=wait_for_all)

    assert is_alive(engine.pid)


@pytest.mark.parametrize("victims", ["the page server", "its guardian", "both"])
def test_it_ends_rather_than_reads_zeros_when_its_page_server_is_killed(
    stored: tuple[Path, int], restore: Callable[..., cria.Engine], held_up: HoldUp, victims: str
) -> None:
    _, port = stored
    engine = restore(listener=held_up)
    guardian, server = held_up.guardian, held_up.server
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"check\n")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):  # it waits for its memory
            connection.recv(1)
        connection.settimeout(20)
        if victims != "its guardian":
            os.kill(server, signal.SIGKILL)
        if victims != "the page server":
            os.kill(guardian, signal.SIGKILL)
        try:
            said = connection.recv(100)
        except ConnectionResetError:
            said = b""

    assert not said, "it went on with memory that was not there"
    wait_for(lambda: not is_alive(engine.pid))
    with contextlib.suppress(ProcessLookupError):
        held_up.go_on()
    wait_for(held_up.is_over)


def test_it_is_told_in_the_log_why_the_engine_was_ended(
    restore: Callable[..., cria.Engine], held_up: HoldUp
) -> None:
    restore(listener=held_up)
    opened = map(os.readlink, Path(f"/proc/{held_up.guardian}/fd").iterdir())
    log = next(Path(path) for path in opened if path.endswith("-lazy.log"))

    os.kill(held_up.server, signal.SIGKILL)
    wait_for(held_up.is_over)

    assert "the engine was ended, because its memory was not complete" in log.read_text()


def test_a_dump_waits_until_all_has_arrived_or_says_why_not(
    stored: tuple[Path, int],
    restore: Callable[..., cria.Engine],
    held_up: HoldUp,
    tmp_path: Path,
) -> None:
    _, port = stored
    engine = restore(listener=held_up)

    with pytest.raises(EngineBusy, match="still being loaded"):
        cria.dump(engine.pid, tmp_path / "early", any_process=True, quiesce_seconds=0.2)
    held_up.go_on()
    again = cria.dump(engine.pid, tmp_path / "again", any_process=True)

    revived = again.restore()
    assert ask(port, "check") == RIGHT
    revived.stop(seconds=5)


def test_stopping_the_engine_ends_its_page_server(
    restore: Callable[..., cria.Engine], held_up: HoldUp
) -> None:
    engine = restore(listener=held_up)

    engine.stop(seconds=1)
    held_up.go_on()

    wait_for(held_up.is_over)


def test_the_checkpoint_may_be_removed_while_memory_arrives(
    stored: tuple[Path, int],
    restore: Callable[..., cria.Engine],
    held_up: HoldUp,
    tmp_path: Path,
) -> None:
    checkpoint, port = stored
    shutil.copytree(checkpoint, tmp_path / "copy")
    restore(tmp_path / "copy", listener=held_up)

    shutil.rmtree(tmp_path / "copy")
    held_up.go_on()

    assert ask(port, "check") == RIGHT


def test_clones_in_namespaces_of_their_own_are_lazy_too(stored: tuple[Path, int]) -> None:
    checkpoint, _ = stored
    clones = cria.open_checkpoint(checkpoint).restore(replicas=2, lazy=True)
    try:
        ports = [port for clone in clones for port in listeners(clone.pid)]
        assert len(ports) == 2
        assert [ask(port, "check") for port in ports] == [RIGHT, RIGHT]
    finally:
        for clone in clones:
            clone.stop(seconds=5)


def listeners(pid: int) -> list[int]:
    from cria.engine.inventory.collect import collect_inventory

    return [found.local.port for found in collect_inventory(pid, any_process=True).listeners()]


def test_a_failed_restore_leaves_no_page_server(
    stored: tuple[Path, int], restore: Callable[..., cria.Engine]
) -> None:
    _, port = stored
    before = page_servers()
    with pytest.raises(cria.CriaError), socket.create_server(("127.0.0.1", port)):
        restore(ports="keep")

    wait_for(lambda: page_servers() <= before)


def page_servers() -> set[str]:
    found = subprocess.run(
        ["pgrep", "-x", PROCESS_NAME], capture_output=True, text=True, check=False
    )
    return set(found.stdout.split())


def test_its_working_set_is_kept_beside_the_checkpoint_not_in_it(
    stored: tuple[Path, int], restore: Callable[..., cria.Engine], tmp_path: Path
) -> None:
    checkpoint, port = stored
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    before = sorted(os.listdir(tmp_path / "checkpoint"))

    restore(tmp_path / "checkpoint")
    wait_for((tmp_path / ".checkpoint.working-set.json").exists)

    assert sorted(os.listdir(tmp_path / "checkpoint")) == before
    assert (tmp_path / ".checkpoint.working-set.json").stat().st_mode & 0o777 == 0o600
    assert ask(port, "check") == RIGHT
