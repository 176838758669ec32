"""Make ready, or remove, the memory that clones of a checkpoint share, ahead of the first restore."""

from __future__ import annotations

from pathlib import Path

from cria.checkpoint.handle import Checkpoint
from cria.events import Listener, progress
from cria.memory.shared import directory
from cria.memory.shared.backing_store import BackingStore
from cria.memory.shared.directory import SharedMemory


def share_memory(
    checkpoint: Checkpoint, place: Path | None = None, *, listener: Listener | None = None
) -> SharedMemory:
    """Build the backing store of `checkpoint` in the directory `place`, or beside the checkpoint.

    Raises CannotShare, NoSpace or NotWritable.
    """
    store = BackingStore(
        checkpoint.path, checkpoint.criu_images, checkpoint.manifest.gpu_state, place
    )
    size = checkpoint.memory_bytes()
    return store.ensure(progress(listener, "build-backing-store", size))


def unshare_memory(checkpoint: Checkpoint, place: Path | None = None) -> int:
    """Remove the backing stores in `place`, or beside the checkpoint, and return the bytes freed.

    Raises PathTaken where an engine uses one.
    """
    return directory.remove(place or directory.default_directory(checkpoint.path))
