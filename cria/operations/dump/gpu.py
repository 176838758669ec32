"""The steps of a dump that deal with GPU memory: saved before the freeze, restored when the engine goes on."""

from __future__ import annotations

from cria.errors import GpuLost
from cria.gpu import devices
from cria.gpu.memory import GpuMemory
from cria.gpu.ranks import Limits
from cria.operations.dump.state import DumpState


def uses_gpus(state: DumpState) -> bool:
    return devices.uses_gpus(state.inventory)


def sleep_engine(state: DumpState) -> None:
    """Let vLLM free what it can rebuild: that need not go through the host's memory into the images."""
    # The driver needs two calls to save GPU memory and two to restore it. The engine must not go on by
    # itself before all four are through.
    state.quiesce.sleep(state.request.weights, lease=4 * state.request.gpu_seconds)


def save_memory(state: DumpState) -> int:
    state.gpu_memory = GpuMemory(state.inventory, limits=Limits(copy=state.request.gpu_seconds))
    state.gpu_state = state.gpu_memory.save()
    return state.gpu_state.taken_bytes


def restore_memory(state: DumpState) -> None:
    if state.has("gpu_memory") and state.lost is None:
        state.gpu_memory.restore()


def restore_memory_of_live_engine(state: DumpState) -> None:
    """Restore GPU memory when all images are whole: a failure is remembered, and the checkpoint finished."""
    try:
        restore_memory(state)
    except GpuLost as lost:
        state.lost = lost


def are_lost(state: DumpState) -> bool:
    return state.lost is not None


def report_lost(state: DumpState) -> None:
    if state.lost is not None:
        output = state.staged.output
        raise GpuLost(
            state.lost.message,
            details=f"{state.lost.details}\nthe checkpoint is whole: {output}",
            remedy=f"cria stop {state.root} && cria restore {output}",
        ) from state.lost
