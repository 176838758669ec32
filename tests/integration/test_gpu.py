"""An engine whose processes hold a GPU goes through real CRIU, with a stand-in for NVIDIA's driver.

The device is a node of the null device called as a GPU is; the stand-in tells the processes to let go of
it and to open it again, as the driver makes them do. `tests/gpu` does the same on a real one.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cria
from cria.engine.launch.launcher import Launched
from cria.errors import CheckpointMismatch, DumpFailed, GpuLost, GpuNotGiven, GpuNotTaken
from cria.gpu import driver
from cria.gpu.driver import Device, State
from cria.system.procfs import command
from tests.cuda_standin import MOVES, Fault, StandIn, gpu

from .conftest import ask, wait_for

pytestmark = pytest.mark.root
NODE = Path(f"/dev/nvidia-standin-{os.getpid()}")
Start = Callable[..., Launched]


class SignallingDriver(StandIn):
    """Keeps the states of living processes; which are checkpointed it reads from what they hold."""

    def __init__(self, number: int = 0) -> None:
        super().__init__([], devices=[Device(gpu=gpu(number))])
        self.locked: set[int] = set()

    def has_context(self, pid: int) -> bool:
        return "gpu_ranks.py" in " ".join(command(pid))

    def state(self, pid: int) -> State:
        if self.states.get(pid) == "failed":
            return "failed"
        if not holds(pid):
            return "checkpointed"
        return "locked" if pid in self.locked else "running"

    def _move(self, action: str, pid: int) -> None:
        self.states[pid] = self.state(pid)
        super()._move(action, pid)
        if self.states[pid] != MOVES[action][1]:
            return
        if action == "checkpoint":
            os.kill(pid, signal.SIGUSR1)
            wait_for(lambda: not holds(pid))
        elif action == "restore":
            os.kill(pid, signal.SIGUSR2)
            wait_for(lambda: holds(pid))
        (self.locked.add if action in ("lock", "restore") else self.locked.discard)(pid)


def holds(pid: int) -> bool:
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())
    return str(NODE) in links


@pytest.fixture
def node() -> Iterator[Path]:
    try:
        os.mknod(NODE, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        if os.environ.get("CI"):
            raise
        pytest.skip(
            "needs CAP_MKNOD: run the tests as root on the host, or docker run --cap-add MKNOD"
        )
    yield NODE
    NODE.unlink()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[StandIn], None]:
    """Give this host another driver from now on."""

    def on(known: StandIn) -> None:
        monkeypatch.setattr(driver, "load", lambda: known)
        monkeypatch.setattr(driver, "unavailable_reason", lambda: None)
        monkeypatch.setattr(driver, "version", lambda: (580, 65))

    return on


@pytest.fixture
def here(pretend: Callable[[StandIn], None], node: Path) -> SignallingDriver:
    """A host with one GPU and the stand-in for its driver."""
    known = SignallingDriver()
    pretend(known)
    return known


@pytest.fixture
def ranks(
    start: Start, free_port: Callable[[], int], here: SignallingDriver
) -> tuple[Launched, int]:
    port = free_port()
    return start("gpu_ranks.py", port, NODE), port


def on_gpu(port: int) -> list[bool]:
    return [each["on_gpu"] for each in ask(port)["ranks"]]


def dump(launched: Launched, place: Path, **options: Any) -> cria.Checkpoint:
    checkpoint = cria.dump(launched.pid, place, any_process=True, **options)
    if not options.get("leave_running"):
        launched.process.wait(timeout=60)
    return checkpoint


def test_it_comes_back_on_its_gpu_with_what_it_had_there(
    ranks: tuple[Launched, int], here: SignallingDriver, tmp_path: Path, ended_after: list[int]
) -> None:
    launched, port = ranks

    checkpoint = dump(launched, tmp_path / "checkpoint")
    state = checkpoint.manifest.gpu_state
    engine = checkpoint.restore()
    ended_after.append(engine.pid)

    assert state is not None and len(state.ranks) == 2
    assert state.gpus == (gpu(0),) and state.driver == "580.65"
    assert state.taken_bytes > 48 << 20
    assert [action for action, _ in here.calls] == [a for a in MOVES for _ in range(2)]
    assert on_gpu(port) == [True, True]
    assert here.maps == [{}, {}]


def test_one_that_lives_on_has_its_gpu_back_and_a_clone_gets_another(
    ranks: tuple[Launched, int], pretend: Callable[[StandIn], None], tmp_path: Path,
    free_port: Callable[[], int], ended_after: list[int],
) -> None:  # fmt: skip
    launched, port = ranks

    checkpoint = dump(launched, tmp_path / "checkpoint", leave_running=True)
    assert on_gpu(port) == [True, True]
    elsewhere = SignallingDriver(5)
    pretend(elsewhere)
    new = free_port()
    clone = checkpoint.restore({port: new})
    ended_after.append(clone.pid)

    assert on_gpu(port) == on_gpu(new) == [True, True]
    assert elsewhere.maps == [{gpu(0).uuid: gpu(5).uuid}] * 2


@pytest.mark.parametrize("action", ["lock", "checkpoint"])
@pytest.mark.parametrize("which", [0, 1])
def test_whatever_rank_cannot_be_taken_the_engine_runs_on_with_its_gpu(
    action: str, which: int, ranks: tuple[Launched, int], here: SignallingDriver, tmp_path: Path
) -> None:
    launched, port = ranks
    pid = ask(port)["ranks"][which]["pid"]
    here.faults = [Fault(pid, action, "refuse")]

    with pytest.raises(GpuNotTaken, match=f"process {pid}"):
        dump(launched, tmp_path / "checkpoint")

    assert on_gpu(port) == [True, True]
    assert list(tmp_path.glob("*checkpoint*")) == []


def test_a_later_failure_gives_it_its_gpu_back(
    ranks: tuple[Launched, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRIU is told to let the engine run on first, then the driver to give it its memory."""
    launched, port = ranks

    def fail(*_: object) -> None:
        raise DumpFailed("not today")

    monkeypatch.setattr("cria.criu.images.files.check_complete", fail)
    with pytest.raises(DumpFailed):
        dump(launched, tmp_path / "checkpoint")

    assert on_gpu(port) == [True, True]


def test_a_process_that_only_holds_it_is_named(
    ranks: tuple[Launched, int], here: SignallingDriver, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    launched, port = ranks
    monkeypatch.setattr(here, "has_context", lambda pid: pid == launched.pid)

    with pytest.raises(GpuNotTaken, match="holds a GPU that it does not compute on") as raised:
        dump(launched, tmp_path / "checkpoint")

    assert str(NODE) in str(raised.value.details)
    assert on_gpu(port) == [True, True]


def test_one_that_cannot_have_its_gpu_back_after_its_dump_keeps_the_checkpoint(
    ranks: tuple[Launched, int], here: SignallingDriver, tmp_path: Path, ended_after: list[int]
) -> None:
    launched, port = ranks
    here.faults = [Fault(launched.pid, "restore", "refuse", None)]

    with pytest.raises(GpuLost, match=f"process {launched.pid}") as raised:
        dump(launched, tmp_path / "checkpoint", leave_running=True)

    assert "the checkpoint is whole" in str(raised.value.details)
    here.faults = []
    launched.process.kill()
    launched.process.wait()
    engine = cria.restore(tmp_path / "checkpoint")
    ended_after.append(engine.pid)
    assert on_gpu(port) == [True, True]


def test_a_restored_engine_that_gets_no_gpu_is_taken_down(
    ranks: tuple[Launched, int], here: SignallingDriver, tmp_path: Path
) -> None:
    launched, _ = ranks
    checkpoint = dump(launched, tmp_path / "checkpoint")
    here.faults = [Fault(launched.pid, "restore", "refuse", None)]

    with pytest.raises(GpuNotGiven):
        checkpoint.restore()

    wait_for(lambda: not Path(f"/proc/{launched.pid}").exists())


def test_nothing_is_started_where_no_gpu_fits(
    ranks: tuple[Launched, int], pretend: Callable[[StandIn], None], tmp_path: Path
) -> None:
    checkpoint = dump(ranks[0], tmp_path / "checkpoint")
    small = StandIn([], devices=[Device(gpu=gpu(9, "L4", 24))])
    pretend(small)

    with pytest.raises(CheckpointMismatch, match=gpu(0).uuid):
        checkpoint.restore()
    assert small.calls == []


def test_criu_loads_no_plugin_for_an_engine_with_gpus(
    ranks: tuple[Launched, int], tmp_path: Path, start: Start, free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A plugin that cannot be loaded ends every call of a CRIU that looks for plugins."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "cuda_plugin.so").write_text("no library")
    monkeypatch.setenv("CRIU_LIBS_DIR", str(plugins))
    other = start("little_engine.py", free_port(), tmp_path)

    with pytest.raises(DumpFailed):
        dump(other, tmp_path / "other")
    dump(ranks[0], tmp_path / "checkpoint").restore()

    assert on_gpu(ranks[1]) == [True, True]
