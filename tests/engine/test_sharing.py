"""Clones of a real engine that share memory: what they answer, and what they hold between them."""

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
    """An engine and its checkpoint, from which it was restored before, plain, on its port."""
    place = tmp_path_factory.mktemp("sharing")
    with restored(warm(1), place, 1) as engine:
        answer("dump", engine.pid, "-o", place / "cp")
        engine.pid = answer("restore", place / "cp")["pid"]
        yield engine, place / "cp"


def held(engines: list[dict[str, Any]]) -> int:
    """The proportional set size of engines: a page that N processes have counts 1/N in each."""
    total = 0
    for engine in engines:
        for process in tree(engine["pid"]):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += int(rollup.split("\nPss:")[1].split()[0]) * 1024
    return total


def test_four_clones_hold_less_than_two_that_share_nothing(
    dumped: tuple[RunningEngine, Path],
) -> None:
    original, place = dumped
    alone = held([{"pid": original.pid}])

    clones = answer("restore", place, "--share-memory", "--replicas", 4, "--ports", "fresh")[
        "engines"
    ]

    try:
        assert held(clones) < 2 * alone
        told = clones[0]["shared_memory"]
        assert told["shared_bytes"] > 5 * told["copied_bytes"]
        assert not any(process["why_not"] for process in told["processes"])
    finally:
        for clone in clones:
            answer("stop", clone["pid"], "--wait", 0)


def test_a_clone_that_shares_is_dumped_and_its_checkpoint_stands_alone(
    dumped: tuple[RunningEngine, Path], tmp_path: Path
) -> None:
    """The canary of the first dump holds for the clone, that of the second for what comes of it."""
    _, place = dumped
    clone = answer("restore", place, "--share-memory", "--ports", "auto")
    answer("dump", clone["pid"], "-o", tmp_path / "second")
    answer("share", place, "--remove")

    again = answer("restore", tmp_path / "second", "--ports", "auto")

    first, second = (cria.open_checkpoint(p).manifest for p in (place, tmp_path / "second"))
    assert first.canary is not None
    assert second.canary is not None
    assert second.canary.tokens == first.canary.tokens
    answer("verify", tmp_path / "second")
    shares = answer("restore", tmp_path / "second", "--share-memory", "--ports", "auto")
    for engine in (again, shares):
        answer("stop", engine["pid"], "--wait", 0)


def test_what_is_used_is_not_removed(dumped: tuple[RunningEngine, Path]) -> None:
    _, place = dumped
    clone = answer("restore", place, "--share-memory", "--ports", "auto")

    refused = command("share", place, "--remove", "--json")

    assert refused.returncode == 55
    assert "cria stop" in json.loads(refused.stdout)["error"]["remedy"]
    answer("stop", clone["pid"], "--wait", 0)
    assert answer("share", place, "--remove")["bytes"] > 500 * MIB
