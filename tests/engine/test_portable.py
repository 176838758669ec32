"""A real engine's checkpoint holds what it needs, and comes back from an archive."""

from __future__ import annotations

from pathlib import Path

import pytest

import cria
from cria.errors import CheckpointMismatch

from .conftest import RunningEngine, answer, command

pytestmark = [pytest.mark.root, pytest.mark.engine]


def stores(checkpoint: cria.Checkpoint) -> list[Path]:
    """With two ranks shared memory is named after the store, too."""
    carried = (Path(file.path) for file in checkpoint.manifest.saved_files)
    named = (path for path in carried if path.name.startswith("vllm_dist_"))
    return [path for path in named if path.parent != Path("/dev/shm")]


def test_its_store_is_carried_and_its_model_is_recorded(engine: RunningEngine) -> None:
    place = engine.place / "checkpoint"
    answer("dump", engine.pid, "-o", place)
    checkpoint = cria.open_checkpoint(place)

    [store] = stores(checkpoint)
    assert not store.exists(), "the engine has ended, and its store with it"
    recorded = {Path(file.path).name for file in checkpoint.manifest.fingerprints}
    assert {"model.safetensors", "config.json", "libc.so.6"} <= recorded
    assert not any("safetensors" in file.path for file in checkpoint.manifest.saved_files)
    assert checkpoint.verify() > 100 << 20


def test_it_comes_back_from_an_archive_and_the_canary_agrees(engine: RunningEngine) -> None:
    place, archive = engine.place / "checkpoint", engine.place / "archive.tar.zst"
    packed = answer("pack", place, archive)
    assert packed["bytes"] < cria.open_checkpoint(place).size_bytes / 2
    answer("unpack", archive, engine.place / "unpacked")

    restored = answer("restore", engine.place / "unpacked")

    engine.pid = restored["pid"]
    [store] = stores(cria.open_checkpoint(place))
    assert store.stat().st_size > 0
    answer("verify", engine.place / "unpacked")


def test_other_weights_are_refused_by_name(engine: RunningEngine) -> None:
    checkpoint = cria.open_checkpoint(engine.place / "checkpoint")
    weights = next(
        Path(f.path) for f in checkpoint.manifest.fingerprints if f.path.endswith(".safetensors")
    )
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        refused = command("restore", checkpoint.path, "--ports", "auto")
    finally:
        weights.write_bytes(content)

    assert refused.returncode == CheckpointMismatch.exit_status
    assert f"{weights} has other content" in refused.stderr


def test_its_store_goes_when_it_is_stopped(engine: RunningEngine) -> None:
    [store] = stores(cria.open_checkpoint(engine.place / "checkpoint"))
    assert store.exists()

    answer("stop", engine.pid)

    assert not store.exists()
