"""The GPU memory of an engine: taken before it is frozen, given back before its requests go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cria.errors import GpuLost
from cria.gpu import devices

if TYPE_CHECKING:
    from cria.operations.dump.state import Dump


def uses_gpus(work: Dump) -> bool:
    return devices.uses_gpus(work.inventory)


def free_what_vllm_can_make_again(work: Dump) -> None:
    """What is not on the GPUs need not go through the host's memory into the images."""
    assert work.still is not None
    # Two actions on the way there, two on the way back: so long nobody must let the engine go on.
    work.still.sleep(work.weights, lease=4 * work.gpu_seconds)


def take_its_gpu_memory(work: Dump) -> int:
    from cria.gpu.memory import GpuMemory
    from cria.gpu.ranks import Limits

    work.gpu = GpuMemory(work.inventory, limits=Limits(copy=work.gpu_seconds))
    work.gpu_state = work.gpu.take()
    return work.gpu_state.taken_bytes


def give_it_back(work: Dump) -> None:
    if work.gpu is not None and work.lost is None:
        work.gpu.give_back()


def give_it_back_or_remember(work: Dump) -> None:
    """An engine that lives on may lose its GPUs now, when its checkpoint is whole: then that is finished first."""
    try:
        give_it_back(work)
    except GpuLost as lost:
        work.lost = lost


def lost_its_gpus(work: Dump) -> bool:
    return work.lost is not None


def say_that_it_lost_its_gpus(work: Dump) -> None:
    assert work.lost is not None
    raise GpuLost(
        work.lost.message,
        details=f"{work.lost.details}\nits checkpoint is whole: {work.output}",
        remedy=f"cria stop {work.root} && cria restore {work.output}",
    ) from work.lost
