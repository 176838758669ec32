"""The step of a restore that makes ready the memory which an engine shares with its clones."""

from __future__ import annotations

from pathlib import Path

from cria.events import progress
from cria.memory.shared.backing_store import BackingStore
from cria.operations.restore.state import OpenedState


def build_backing_store(state: OpenedState) -> int:
    """Build the backing store, unless this host has it. Return the bytes copied."""
    share_in = state.request.share_in
    checkpoint = state.checkpoint
    state.backing_store = BackingStore(
        checkpoint.path,
        checkpoint.criu_images,
        checkpoint.manifest.gpu_state,
        Path(share_in) if share_in is not None else None,
    )
    size = checkpoint.memory_bytes()
    state.shared_memory = state.backing_store.ensure(
        progress(state.request.listener, "build-backing-store", size)
    )
    return size if state.shared_memory.made else 0
