"""What each worker of an engine does before a dump: meet the other ranks, then drop its KV cache."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from cria_agent import spin_backoff
from cria_agent.commands import free_heap
from cria_agent.rendezvous import barrier, file_stores, process_groups

MADV_DONTNEED = 4


def quiesce(self: Any, token: str, seconds: float) -> dict[str, Any]:
    """Method of a worker whose engine is paused and has no block of its KV cache in use.

    It never raises: vLLM stops reading at the first failure, and the next call would be given the
    answers of the other ranks to this one.
    """
    answer: dict[str, Any] = {"rank": rank(), "groups": 0, "dropped_bytes": 0, "error": None}
    try:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        answer["groups"] = barrier(token, seconds)
        answer["stores"] = file_stores()
        answer["dropped_bytes"] = sum(map(drop, cpu_storages(self.model_runner)))
        spin_backoff.start(spin_backoff.process_count(self.vllm_config))
        free_heap()
    except Exception as error:  # noqa: BLE001 - see above
        answer["error"] = f"{type(error).__name__}: {error}"
    return answer


def prepare(self: Any) -> None:
    """Method of a worker that has started: what it has made by now is never collected again.

    A quiesce collects garbage, which took 0.35 s of every pause in looking through torch's objects. vLLM
    does the same in its other processes, and in workers on GPUs (0.32, gc_utils.freeze_gc_heap).
    """
    spin_backoff.start(spin_backoff.process_count(self.vllm_config))
    gc.collect()
    gc.freeze()


def groups(self: Any) -> list[dict[str, Any]]:  # noqa: ARG001
    """Method of a worker: the process groups it is a member of, in the order they were made."""
    return [
        {"name": name, "backend": str(dist.get_backend(group)), "ranks": list(ranks)}
        for group, name, ranks in process_groups()
    ]


def rank() -> int:
    return int(dist.get_rank()) if dist.is_initialized() else 0


def cpu_storages(runner: Any) -> Iterator[torch.UntypedStorage]:
    """The memory of the KV cache, each piece once: layers share it."""
    storages = {}
    for tensor in _tensors(getattr(runner, "kv_caches", None)):
        if tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
    return iter(storages.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def drop(storage: torch.UntypedStorage) -> int:
    """Give whole pages back to the kernel: they read as zeros, as they did when vLLM made them."""
    page = mmap.PAGESIZE
    begin, end = int(storage.data_ptr()), int(storage.data_ptr() + storage.nbytes())
    first = -(-begin // page) * page
    size = end // page * page - first
    if size <= 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_DONTNEED) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return size
