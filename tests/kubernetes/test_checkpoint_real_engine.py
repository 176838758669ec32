"""cria kubernetes checkpoint of a real vLLM engine in a container, while it generates."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from cria.engine.generate import generate
from cria.kubernetes.still import Wish
from tests.kubernetes.conftest import Container
from tests.kubernetes.test_checkpoint import Kubelet, kubelet
from tests.kubernetes.test_real_engine import (
    TOKENS,
    Generating,
    engine,
    fields,
    on_the_node,
    shared_memory,
    url_of,
)

__all__ = ["engine", "fields", "kubelet", "on_the_node", "shared_memory"]
pytestmark = pytest.mark.engine


def test_it_stands_still_meanwhile_and_its_requests_are_completed(
    on_the_node: Callable[..., str], engine: Container, kubelet: Kubelet
) -> None:
    on_the_node("install")
    alone = generate(url_of(engine), tokens=TOKENS)
    busy = Generating(url_of(engine))
    time.sleep(alone.seconds / 4)

    done = kubelet.take(kubelet.show(engine), Wish(python=sys.executable))

    busy.join(timeout=60)
    assert busy.generation is not None
    assert busy.generation.tokens == alone.tokens
    said = done.manifest
    assert len(said.still.engines) == 1
    assert said.still.engines[0].dropped_bytes > 1 << 29, "its KV cache is not in the archive"
    assert said.checked.pages_bytes > 0
    assert said.checked.bytes < 3 << 30
