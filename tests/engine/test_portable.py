"""The checkpoint of a real engine holds the files that it needs, and can be packed and unpacked."""

from __future__ import annotations

from pathlib import Path

import pytest

import cria
from cria.errors import CheckpointMismatch

from .conftest import RunningEngine, answer, command

pytestmark = [pytest.mark.root, pytest.mark.engine]


def stores(checkpoint: cria.Checkpoint) -> list[Path]:
    """Return the stores in a checkpoint. With two ranks there is shared memory with the name of the store too."""
    saved = (Path(file.path) for file in checkpoint.manifest.saved_files)
    named = (path for path in saved if path.name.startswith("vllm_dist_"))
    return [path for path in named if path.parent != Path("/dev/shm")]


def test_the_store_is_saved_and_the_model_has_a_fingerprint(engine: RunningEngine) -> None:
    path = engine.directory / "checkpoint"
    answer("dump", engine.pid, "-o", path)
    checkpoint = cria.open_checkpoint(path)

    [store] = stores(checkpoint)
    assert not store.exists(), "the engine has ended, and its store with it"
    names = {Path(file.path).name for file in checkpoint.manifest.fingerprints}
    assert {"model.safetensors", "config.json", "libc.so.6"} <= names
    assert not any("safetensors" in file.path for file in checkpoint.manifest.saved_files)
    assert checkpoint.verify() > 100 << 20


def test_an_unpacked_archive_restores_and_verifies(engine: RunningEngine) -> None:
    path, archive = engine.directory / "checkpoint", engine.directory / "archive.tar.zst"
    packed = answer("pack", path, archive)
    assert packed["bytes"] < cria.open_checkpoint(path).size_bytes / 2
    answer("unpack", archive, engine.directory / "unpacked")

    restored = answer("restore", engine.directory / "unpacked")

    engine.pid = restored["pid"]
    [store] = stores(cria.open_checkpoint(path))
    assert store.stat().st_size > 0
    answer("verify", engine.directory / "unpacked")


def test_a_restore_with_other_weights_is_refused_and_names_the_file(engine: RunningEngine) -> None:
    checkpoint = cria.open_checkpoint(engine.directory / "checkpoint")
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


def test_the_store_is_removed_when_the_engine_is_stopped(engine: RunningEngine) -> None:
    [store] = stores(cria.open_checkpoint(engine.directory / "checkpoint"))
    assert store.exists()

    answer("stop", engine.pid)

    assert not store.exists()
