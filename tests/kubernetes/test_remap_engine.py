"""A real vLLM engine and its copy from a remapped archive serve beside each other, on one network."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cria.engine.generate import generate
from cria.kubernetes.remap import remap
from tests.kubernetes.conftest import Container
from tests.kubernetes.test_criu_action import on_the_node
from tests.kubernetes.test_real_engine import (
    engine,
    fields,
    shared_memory,
    url_of,
    wait_until_it_answers,
)

__all__ = ["engine", "fields", "on_the_node", "shared_memory"]
pytestmark = pytest.mark.engine
TOKENS = 32


@pytest.fixture
def other_volumes(engine: Container) -> Iterator[dict[str, Any]]:
    """The mounts of the engine for another pod: /dev/shm is a volume of its own there, and empty."""
    place = tempfile.mkdtemp(prefix="cria-test-", dir="/dev/shm")
    mounts = [
        each | {"host_path": place} if each["container_path"] == "/dev/shm" else each
        for each in engine.fields["mounts"]
    ]
    yield {"mounts": mounts}
    shutil.rmtree(place)


@pytest.fixture(autouse=True)
def at_a_still_point(on_the_node: Callable[..., str]) -> None:
    on_the_node("install")


def test_an_engine_and_its_copy_generate_the_same_beside_each_other(
    engine: Container,
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
    other_volumes: dict[str, Any],
    tmp_path: Path,
) -> None:
    alone = generate(url_of(engine), tokens=TOKENS).tokens
    port = int(url_of(engine).rpartition(":")[2])
    archive = checkpoint(engine)

    done = remap(archive, tmp_path / "new.tar", ports={port: port + 1})
    restore(done.path, engine, **other_volumes)

    copy = f"http://127.0.0.1:{port + 1}"
    wait_until_it_answers(copy)
    assert generate(copy, tokens=TOKENS).tokens == alone
    assert generate(url_of(engine), tokens=TOKENS).tokens == alone
    assert done.needs == (), "its shared memory came in the archive"
    assert len(done.plan.ports.moved_ports) == len(done.plan.ports.listeners) > 10
