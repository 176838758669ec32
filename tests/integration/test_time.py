"""The monotonic clocks of an engine stand still while it is a checkpoint; its wall clock is the host's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cria
from cria.engine.launch.launcher import Launched
from tests.clocks import with_monotonic_moved

from .conftest import wait_for

pytestmark = pytest.mark.root
HOUR = 3600
Reading = tuple[float, ...]


@pytest.fixture
def clock(start: Callable[..., Launched]) -> Launched:
    return start("clock.py")


def readings(log: Path) -> list[Reading]:
    """Return what the program logged: clocks monotonic, since boot and wall. Its last line may be half written."""
    lines = log.read_text().split("\n")[1:-1] if log.exists() else []
    return [tuple(map(float, line.split())) for line in lines]


def dump_and_end(clock: Launched, checkpoint: Path) -> Reading:
    """Dump and end the program, and return its last reading."""
    wait_for(lambda: len(readings(clock.log)) > 0)
    cria.dump(clock.pid, checkpoint, any_process=True)
    clock.process.wait(timeout=60)
    return readings(clock.log)[-1]


def test_monotonic_clocks_go_on_from_their_time_at_the_dump_in_each_generation(
    clock: Launched, tmp_path: Path, ended_after: list[int]
) -> None:
    checkpoint = tmp_path / "first"
    before = dump_and_end(clock, checkpoint)
    for generation in ("second", "third"):
        count = len(readings(clock.log))
        time.sleep(1.5)
        pid = cria.restore(checkpoint, isolate="never").pid
        ended_after.append(pid)
        wait_for(lambda count=count: len(readings(clock.log)) > count)
        after = readings(clock.log)[count]

        assert 0 < after[0] - before[0] < 1.5, "monotonic"
        assert 0 < after[1] - before[1] < 1.5, "since boot"
        assert after[2] - before[2] > 1.5, "the wall clock is the host's"

        checkpoint = tmp_path / generation
        cria.dump(pid, checkpoint, any_process=True)
        before = readings(clock.log)[-1]


def test_monotonic_clocks_go_on_in_a_clone_with_namespaces_of_its_own(
    clock: Launched, tmp_path: Path, ended_after: list[int]
) -> None:
    before = dump_and_end(clock, tmp_path / "cp")
    time.sleep(1.5)

    ended_after.append(cria.restore(tmp_path / "cp", isolate="always").pid)

    (log,) = tmp_path.glob(f"{clock.log.name}.*")
    wait_for(lambda: log.read_text().count("\n") > 1)
    after = tuple(map(float, log.read_text().splitlines()[0].split()))
    assert 0 < after[0] - before[0] < 1.5


def test_a_checkpoint_with_moved_clocks_restores_to_them(
    clock: Launched, tmp_path: Path, ended_after: list[int]
) -> None:
    """The tests of real engines move clocks so."""
    before = dump_and_end(clock, tmp_path / "cp")
    count = len(readings(clock.log))

    moved = with_monotonic_moved(tmp_path / "cp", 6 * HOUR, tmp_path / "moved")
    ended_after.append(cria.restore(moved, isolate="never").pid)

    wait_for(lambda: len(readings(clock.log)) > count)
    assert 0 < readings(clock.log)[count][0] - before[0] - 6 * HOUR < 2
