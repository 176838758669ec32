"""Engines as they were recorded from real ones with scripts/record_snapshot.py (vLLM 0.32, CPU)."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cria.engine.inventory.collect import Snapshot

SNAPSHOTS = Path(__file__).parents[2] / "data" / "snapshots"


def recorded(name: str) -> Snapshot:
    return msgspec.json.decode((SNAPSHOTS / f"{name}.json").read_bytes(), type=Snapshot)


@pytest.fixture
def snapshot() -> Callable[[str], Snapshot]:
    return recorded
