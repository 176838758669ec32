"""The GPUs of a restored engine: chosen before anything is started, given before its requests go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cria.operations.restore.state import Restore, Source


def had_gpus(work: Source) -> bool:
    return work.checkpoint.manifest.gpu_state is not None


def choose_its_gpus(work: Source) -> None:
    """Which GPU here takes the place of which, while nothing has been started."""
    from cria.gpu import memory

    state = work.checkpoint.manifest.gpu_state
    if state is not None:
        work.gpu_map = memory.choose(state, work.wants_gpus)


def give_it_its_gpus(work: Restore) -> None:
    from cria.gpu import memory
    from cria.gpu.ranks import Limits

    state = work.checkpoint.manifest.gpu_state
    assert state is not None
    limits = Limits(copy=work.gpu_seconds)
    memory.give(state, work.root, gpu_map=work.gpu_map, limits=limits)
