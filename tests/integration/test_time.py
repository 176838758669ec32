"""No time passes for an engine while it is a checkpoint, but on the wall clock."""

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
    """Monotonic, since boot and wall, as the program said them; its last line may be half written."""
    lines = log.read_text().split("\n")[1:-1] if log.exists() else []
    return [tuple(map(float, line.split())) for line in lines]


def ended_in(clock: Launched, checkpoint: Path) -> Reading:
    """Dump and end the program; what it said last."""
    wait_for(lambda: len(readings(clock.log)) > 0)
    cria.dump(clock.pid, checkpoint, any_process=True)
    clock.process.wait(timeout=60)
    return readings(clock.log)[-1]


def test_its_monotonic_clocks_go_on_from_where_they_stood_time_and_again(
    clock: Launched, tmp_path: Path, ended_after: list[int]
) -> None:
    before, place = ended_in(clock, tmp_path / "first"), tmp_path / "first"
    for generation in ("second", "third"):
        known = len(readings(clock.log))
        time.sleep(1.5)
        pid = cria.restore(place, isolate="never").pid
        ended_after.append(pid)
        wait_for(lambda known=known: len(readings(clock.log)) > known)
        after = readings(clock.log)[known]

        assert 0 < after[0] - before[0] < 1.5, "monotonic"
        assert 0 < after[1] - before[1] < 1.5, "since boot"
        assert after[2] - before[2] > 1.5, "it wakes up to the host's wall clock"

        place = tmp_path / generation
        cria.dump(pid, place, any_process=True)
        before = readings(clock.log)[-1]


def test_a_clone_in_namespaces_of_its_own_has_them_too(
    clock: Launched, tmp_path: Path, ended_after: list[int]
) -> None:
    before = ended_in(clock, tmp_path / "cp")
    time.sleep(1.5)

    ended_after.append(cria.restore(tmp_path / "cp", isolate="always").pid)

    (log,) = tmp_path.glob(f"{clock.log.name}.*")
    wait_for(lambda: log.read_text().count("\n") > 1)
    after = tuple(map(float, log.read_text().splitlines()[0].split()))
    assert 0 < after[0] - before[0] < 1.5


def test_the_tests_can_move_its_clocks(
    clock: Launched, tmp_path: Path, ended_after: list[int]
) -> None:
    """What the tests of a real engine rest on."""
    before = ended_in(clock, tmp_path / "cp")
    known = len(readings(clock.log))

    moved = with_monotonic_moved(tmp_path / "cp", 6 * HOUR, tmp_path / "moved")
    ended_after.append(cria.restore(moved, isolate="never").pid)

    wait_for(lambda: len(readings(clock.log)) > known)
    assert 0 < readings(clock.log)[known][0] - before[0] - 6 * HOUR < 2
