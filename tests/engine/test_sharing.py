"""Clones of a real engine share memory, and hold less of it together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cria
from cria.system.procfs import tree

from .conftest import RunningEngine, answer, command, restored

pytestmark = [pytest.mark.root, pytest.mark.engine]

MIB = 1 << 20


@pytest.fixture(scope="module")
def dumped(
    tmp_path_factory: pytest.TempPathFactory, warm: Callable[[int], Path]
) -> Iterator[tuple[RunningEngine, Path]]:
    """A checkpoint, and the engine restored from it without sharing, on its own port."""
    directory = tmp_path_factory.mktemp("sharing")
    with restored(warm(1), directory, 1) as engine:
        answer("dump", engine.pid, "-o", directory / "cp")
        engine.pid = answer("restore", directory / "cp")["pid"]
        yield engine, directory / "cp"


def pss_bytes(engines: list[dict[str, Any]]) -> int:
    """Return the proportional set size of engines: a page that N processes have counts 1/N in each."""
    total = 0
    for engine in engines:
        for process in tree(engine["pid"]):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += int(rollup.split("\nPss:")[1].split()[0]) * 1024
    return total


def test_four_clones_hold_less_than_two_that_share_nothing(
    dumped: tuple[RunningEngine, Path],
) -> None:
    original, checkpoint = dumped
    alone = pss_bytes([{"pid": original.pid}])

    clones = answer("restore", checkpoint, "--share-memory", "--replicas", 4, "--ports", "fresh")[
        "engines"
    ]

    try:
        assert pss_bytes(clones) < 2 * alone
        report = clones[0]["shared_memory"]
        assert report["shared_bytes"] > 5 * report["copied_bytes"]
        assert not any(process["why_not"] for process in report["processes"])
    finally:
        for clone in clones:
            answer("stop", clone["pid"], "--wait", 0)


def test_the_checkpoint_of_a_clone_that_shares_memory_needs_no_other(
    dumped: tuple[RunningEngine, Path], tmp_path: Path
) -> None:
    """The canaries verify that the clone, and the engine restored from its checkpoint, compute the same."""
    _, checkpoint = dumped
    clone = answer("restore", checkpoint, "--share-memory", "--ports", "auto")
    answer("dump", clone["pid"], "-o", tmp_path / "second")
    answer("share", checkpoint, "--remove")

    again = answer("restore", tmp_path / "second", "--ports", "auto")

    first, second = (cria.open_checkpoint(p).manifest for p in (checkpoint, tmp_path / "second"))
    assert first.canary is not None
    assert second.canary is not None
    assert second.canary.tokens == first.canary.tokens
    answer("verify", tmp_path / "second")
    shares = answer("restore", tmp_path / "second", "--share-memory", "--ports", "auto")
    for engine in (again, shares):
        answer("stop", engine["pid"], "--wait", 0)


def test_shared_memory_in_use_is_not_removed(dumped: tuple[RunningEngine, Path]) -> None:
    _, checkpoint = dumped
    clone = answer("restore", checkpoint, "--share-memory", "--ports", "auto")

    refused = command("share", checkpoint, "--remove", "--json")

    assert refused.returncode == 55
    assert "cria stop" in json.loads(refused.stdout)["error"]["remedy"]
    answer("stop", clone["pid"], "--wait", 0)
    assert answer("share", checkpoint, "--remove")["bytes"] > 500 * MIB
