"""The methods that workers get: reach a barrier with all other ranks and drop the KV cache, before a dump."""

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
    """Reach a barrier with all ranks and drop the KV cache of a worker whose engine is paused.

    The answer holds an error, and nothing is raised: vLLM stops reading at the first failure, and would give
    the answers of other ranks to the next call.
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
    """Exempt the objects that a worker has made at its start from garbage collection.

    quiesce() collects garbage, which took 0.35 s of every pause to look through torch's objects. vLLM does so
    in its other processes, and in workers on GPUs (0.32, gc_utils.freeze_gc_heap).
    """
    spin_backoff.start(spin_backoff.process_count(self.vllm_config))
    gc.collect()
    gc.freeze()


def groups(self: Any) -> list[dict[str, Any]]:  # noqa: ARG001
    """Return the process groups that a worker is a member of, in the order they were made."""
    return [
        {"name": name, "backend": str(dist.get_backend(group)), "ranks": list(ranks)}
        for group, name, ranks in process_groups()
    ]


def rank() -> int:
    """Return the rank of this worker among all."""
    return int(dist.get_rank()) if dist.is_initialized() else 0


def cpu_storages(runner: Any) -> Iterator[torch.UntypedStorage]:
    """Return the memory of the KV cache, each storage once: layers may share one."""
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
        for item in value:
            yield from _tensors(item)


def drop(storage: torch.UntypedStorage) -> int:
    """Give the whole pages of a storage back to the kernel and return their bytes: they read as zeros, as at the start."""
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
