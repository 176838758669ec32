"""A real engine serves while its memory still arrives, with the same tokens, as one and as clones."""

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
    """A checkpoint, and what its engine generated before it ended."""
    place = tmp_path_factory.mktemp("lazy")
    with restored(warm(1), place, 1) as engine:
        tokens = generate(engine.url).tokens
        answer("dump", engine.pid, "-o", place / "checkpoint")
    return place / "checkpoint", tokens


def arrived(engine: RunningEngine | cria.Engine) -> None:
    deadline = time.monotonic() + 60
    while client.find_supervisor([engine.pid]) is not None:
        assert time.monotonic() < deadline, "its memory does not arrive"
        time.sleep(0.01)


def test_it_serves_the_same_tokens_before_and_after_all_has_arrived(
    stored: tuple[Path, tuple[int, ...]],
) -> None:
    checkpoint, tokens = stored
    seconds = {}
    for words in ((), ("--lazy",), ("--lazy",)):
        begin = time.monotonic()
        facts = answer("restore", checkpoint, *words, "--ports", "auto")
        engine = cria.Engine(pid=facts["pid"], url=facts["url"])
        first = generate(facts["url"]).tokens
        name = " ".join(words) + (" again" if words and words in seconds else "") or "plain"
        seconds[name] = time.monotonic() - begin
        arrived(engine)
        print(f"{name}: answered {seconds[name]:.2f} s, all there {time.monotonic() - begin:.2f} s")
        try:
            assert first == tokens
            assert generate(facts["url"]).tokens == tokens
        finally:
            answer("stop", facts["url"])
    assert working_set.place_for(checkpoint).exists()


def test_lazy_clones_serve_the_same_tokens(stored: tuple[Path, tuple[int, ...]]) -> None:
    checkpoint, tokens = stored
    fleet = answer("restore", checkpoint, "--lazy", "--replicas", 2, "--ports", "auto")["engines"]
    try:
        assert [generate(clone["url"]).tokens for clone in fleet] == [tokens] * 2
    finally:
        for clone in fleet:
            answer("stop", clone["url"])
