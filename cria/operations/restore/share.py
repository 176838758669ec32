"""The memory that an engine shares with its clones: made sure of before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cria.operations.restore.state import Source


def is_wanted(work: Source) -> bool:
    return work.share_memory


def share_its_memory(work: Source) -> int:
    """The first restore on this host copies it, the later ones find it. Returns the bytes copied."""
    from cria.events import progress
    from cria.memory.shared.backing_store import Backing

    work.backing = Backing(
        work.checkpoint.path, work.checkpoint.manifest.gpu_state, work.share_in, work.client.criu
    )
    total = work.checkpoint.memory_bytes()
    work.shared = work.backing.make_sure_of(progress(work.listener, "build-backing-store", total))
    return total if work.shared.made else 0
