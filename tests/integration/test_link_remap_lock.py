"""Dumps and restores at the same time do not confuse CRIU's link remaps, which have the same names."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cria
from cria.checkpoint.saved_files import LINK_REMAP
from cria.engine.launch.launcher import Launched
from cria.errors import PathTaken

from .conftest import wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]
VALUES = (3, 5, 7, 9)


@pytest.fixture
def programs_with_semaphores(start: Callable[..., Launched]) -> list[Launched]:
    return [start("semaphore.py", value) for value in VALUES]


def dump(program: Launched, directory: Path) -> cria.Checkpoint:
    return cria.dump(program.pid, directory, any_process=True)


def printed_values(program: Launched) -> list[str]:
    return program.log.read_text().split("\n")[1:-1]


def test_dumps_and_restores_at_the_same_time_keep_their_own_semaphores(
    programs_with_semaphores: list[Launched], tmp_path: Path, ended_after: list[int]
) -> None:
    directories = [tmp_path / str(value) for value in VALUES]
    with ThreadPoolExecutor() as pool:
        checkpoints = list(pool.map(dump, programs_with_semaphores, directories))
        for program in programs_with_semaphores:
            program.process.wait(timeout=60)
            program.log.write_text("")
        engines = pool.map(lambda c: c.restore(isolate="never"), checkpoints)
        ended_after.extend(engine.pid for engine in engines)

    for program, value in zip(programs_with_semaphores, VALUES, strict=True):
        wait_for(lambda program=program: len(printed_values(program)) > 1)
        assert printed_values(program)[-1] == str(value)


def test_a_link_remap_that_is_left_over_is_named_and_the_program_runs_on(
    programs_with_semaphores: list[Launched], tmp_path: Path
) -> None:
    program = programs_with_semaphores[0]
    leftovers = [Path(f"/dev/shm/{LINK_REMAP}{number}") for number in range(1, 100)]
    leftovers = [path for path in leftovers if not path.exists()]
    try:
        for path in leftovers:
            path.touch(exist_ok=False)
        with pytest.raises(PathTaken) as caught:
            dump(program, tmp_path / "cp")
    finally:
        for path in leftovers:
            path.unlink(missing_ok=True)

    assert f"/dev/shm/{LINK_REMAP}*" in (caught.value.remedy or "")
    count = len(printed_values(program))
    wait_for(lambda: len(printed_values(program)) > count)
    assert dump(program, tmp_path / "cp").manifest.saved_files
