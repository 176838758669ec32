"""Ranks of a real torch.distributed pass a barrier, or fail together, and can pass the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine
WORLD = 3


class Rank:
    """One process of tests/programs/ranks.py."""

    def __init__(self, program: Path, store: Path, number: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, program, store, str(WORLD), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        )

    def call(self, token: str, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{token} {seconds}\n")
        self.process.stdin.flush()

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    @property
    def name(self) -> str:
        return Path(f"/proc/{self.process.pid}/comm").read_text().strip()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks") / "store"


@pytest.fixture(scope="module")
def ranks(store: Path) -> Iterator[list[Rank]]:
    program = Path(__file__).parents[1] / "programs" / "ranks.py"
    started = [Rank(program, store, number) for number in range(WORLD)]
    try:
        for rank in started:
            assert rank.read_line() == "ready"
        yield started
    finally:
        for rank in started:
            rank.process.kill()
            rank.process.wait()


def all_pass(ranks: list[Rank], token: str) -> None:
    for rank in ranks:
        rank.call(token, 20)
    assert [rank.read_line() for rank in ranks] == ["passed in 2 groups, all reduced to 3"] * WORLD


def test_all_ranks_pass_the_barrier_in_every_group(ranks: list[Rank]) -> None:
    all_pass(ranks, "first")


def test_a_stopped_rank_is_named_and_when_it_comes_too_late_all_can_pass_the_next_barrier(
    ranks: list[Rank],
) -> None:
    """A barrier that times out would have closed Gloo's connections for ever."""
    before = ranks[0].name
    os.kill(ranks[2].process.pid, signal.SIGSTOP)
    try:
        for rank in ranks:
            rank.call("late", 1.5)
        deadline = time.monotonic() + 10
        while ranks[0].name != "waits for 2":
            assert time.monotonic() < deadline, (
                "the name of the process says which rank it waits for"
            )
            time.sleep(0.01)
        assert [rank.read_line() for rank in ranks[:2]] == [
            "failed: rank 2 did not come within 1.5 s"
        ] * 2
    finally:
        os.kill(ranks[2].process.pid, signal.SIGCONT)

    assert ranks[2].read_line() == "failed: this rank came after the others gave up within 1.5 s"
    assert ranks[0].name == before
    all_pass(ranks, "again")


def test_a_rank_that_comes_late_but_in_time_is_waited_for(ranks: list[Rank]) -> None:
    for rank in ranks[:2]:
        rank.call("waited", 20)
    time.sleep(0.5)
    ranks[2].call("waited", 20)

    assert [rank.read_line() for rank in ranks] == ["passed in 2 groups, all reduced to 3"] * WORLD


def test_two_missing_ranks_are_both_named(ranks: list[Rank]) -> None:
    ranks[1].call("alone", 0.5)

    assert ranks[1].read_line() == "failed: rank 0,2 did not come within 0.5 s"
    for rank in (ranks[0], ranks[2]):
        rank.call("alone", 0.5)
        assert rank.read_line().startswith("failed: ")
    all_pass(ranks, "last")


def test_ranks_pass_the_barrier_also_when_the_file_of_their_store_was_removed(
    ranks: list[Rank], store: Path
) -> None:
    for token in ("cleared", "cleared-again"):
        store.unlink()
        all_pass(ranks, token)
