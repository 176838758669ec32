"""The steps of a restore that deal with GPUs: chosen before anything starts, restored before requests resume.

What they import is imported in the functions: 9 ms of a restore, which an engine without GPUs saves.
"""

from __future__ import annotations

from cria.operations.restore.state import OpenedState, RestoreState


def had_gpus(state: OpenedState) -> bool:
    return state.checkpoint.manifest.gpu_state is not None


def choose(state: OpenedState) -> None:
    """Choose which GPU of this host replaces which of the checkpoint, before anything is started."""
    from cria.gpu import memory

    gpu_state = state.checkpoint.manifest.gpu_state
    if gpu_state is not None:
        state.gpu_map = memory.map_gpus(gpu_state, state.request.gpus or {})


def restore_memory(state: RestoreState) -> None:
    from cria.gpu import memory
    from cria.gpu.ranks import Limits

    gpu_state = state.checkpoint.manifest.gpu_state
    if gpu_state is not None:
        limits = Limits(copy=state.request.gpu_seconds)
        memory.restore(gpu_state, state.root, gpu_map=state.gpu_map, limits=limits)
