"""A real engine that is restored lazily generates the same tokens, before and after its memory has arrived."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cria
from cria.engine.http_api import generate
from cria.memory.lazy import client, working_set

from .conftest import RunningEngine, answer, restored

pytestmark = [pytest.mark.root, pytest.mark.engine]


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory, warm: Callable[[int], Path]
) -> tuple[Path, tuple[int, ...]]:
    """A checkpoint, and the tokens that its engine generated before it ended."""
    directory = tmp_path_factory.mktemp("lazy")
    with restored(warm(1), directory, 1) as engine:
        tokens = generate(engine.url).tokens
        answer("dump", engine.pid, "-o", directory / "checkpoint")
    return directory / "checkpoint", tokens


def wait_for_memory(engine: RunningEngine | cria.Engine) -> None:
    deadline = time.monotonic() + 60
    while client.find_supervisor([engine.pid]) is not None:
        assert time.monotonic() < deadline, "its memory has not arrived"
        time.sleep(0.01)


def test_the_tokens_are_the_same_before_and_after_all_memory_has_arrived(
    stored: tuple[Path, tuple[int, ...]],
) -> None:
    checkpoint, tokens = stored
    seconds = {}
    for options in ((), ("--lazy",), ("--lazy",)):
        begin = time.monotonic()
        facts = answer("restore", checkpoint, *options, "--ports", "auto")
        engine = cria.Engine(pid=facts["pid"], url=facts["url"])
        first = generate(facts["url"]).tokens
        name = " ".join(options) + (" again" if options and "--lazy" in seconds else "") or "plain"
        seconds[name] = time.monotonic() - begin
        wait_for_memory(engine)
        print(f"{name}: answered {seconds[name]:.2f} s, all there {time.monotonic() - begin:.2f} s")
        try:
            assert first == tokens
            assert generate(facts["url"]).tokens == tokens
        finally:
            answer("stop", facts["url"])
    assert working_set.path_for(checkpoint).exists()


def test_lazy_clones_serve_the_same_tokens(stored: tuple[Path, tuple[int, ...]]) -> None:
    checkpoint, tokens = stored
    clones = answer("restore", checkpoint, "--lazy", "--replicas", 2, "--ports", "auto")["engines"]
    try:
        assert [generate(clone["url"]).tokens for clone in clones] == [tokens] * 2
    finally:
        for clone in clones:
            answer("stop", clone["url"])
