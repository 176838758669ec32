"""What an engine on GPUs needs from its start, so that its GPU memory can be taken later.

Sources: NVIDIA/nvcf#1184 (measured with TP=2 and TP=4), NVIDIA/nccl#2337 (NVLS), NVIDIA/nvcf#891 (RDMA),
vllm/envs.py and vllm/engine/arg_utils.py of 0.32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from cria.engine.command_line import Setting

CONTROL_DEVICE = Path("/dev/nvidiactl")
_SIZES = {
    "--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp",
    "--data-parallel-size-local", "-dpl",
}  # fmt: skip
_SLEEP = "--enable-sleep-mode"
_NO_CUSTOM_ALL_REDUCE = "--disable-custom-all-reduce"
_SHARED = "ranks must share no GPU memory: the driver cannot checkpoint it"
_VARIABLES = {
    "NCCL_P2P_DISABLE": ("1", f"{_SHARED} (CUDA IPC)"),
    "NCCL_NVLS_ENABLE": ("0", f"{_SHARED} (multicast)"),
    "NCCL_SHM_DISABLE": ("1", f"{_SHARED} (host memory that is mapped on GPUs)"),
    "NCCL_IB_DISABLE": ("1", "RDMA queues cannot be checkpointed"),
    "VLLM_ALLREDUCE_USE_SYMM_MEM": ("0", f"{_SHARED} (symmetric memory)"),
    "VLLM_ALLREDUCE_USE_FLASHINFER": ("0", f"{_SHARED} (FlashInfer's workspaces)"),
}


def gpu_settings(command: Sequence[str]) -> Iterator[Setting]:
    """What a command that starts vLLM on GPUs needs; `kept` options are there already."""
    if not starts_vllm(command):
        return
    yield _option(
        command, _SLEEP, "lets vLLM free its KV cache before a dump: it is not stored then"
    )
    if rank_count(command) > 1:
        for name, (value, why) in _VARIABLES.items():
            yield Setting(name=name, value=value, why=why)
        yield _option(command, _NO_CUSTOM_ALL_REDUCE, f"{_SHARED} (CUDA IPC)")


def missing_settings(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """What an engine with these words and variables lacks, of what ranks need that share no GPU memory."""
    if rank_count(command) < 2:
        return ()
    lacks = [f"{n}={v}" for n, (v, _) in _VARIABLES.items() if environment.get(n) != v]
    if _NO_CUSTOM_ALL_REDUCE not in _names(command):
        lacks.append(_NO_CUSTOM_ALL_REDUCE)
    return tuple(lacks)


def rank_count(command: Sequence[str]) -> int:
    """How many processes compute together, as far as the command says: tensor x pipeline x data parallel."""
    count, sizes = 1, {name.lstrip("-"): 1 for name in _SIZES}
    for word, after in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = _name(word).partition("=")
        number = value if equals else after
        if name in _SIZES and number.isdecimal():
            sizes[name.lstrip("-")] = int(number)
    for size in sizes.values():
        count *= max(size, 1)
    return count


def starts_vllm(command: Sequence[str]) -> bool:
    """Whether words can be added to this command: it is vLLM itself and not a shell around it."""
    modules = any(word.startswith("vllm.entrypoints") for word in command)
    return modules or any(
        Path(first).name == "vllm" and second == "serve" for first, second in pairwise(command)
    )


def has_gpus(environment: Mapping[str, str], control: Path = CONTROL_DEVICE) -> bool:
    """Whether an engine that is started here and so would find GPUs."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    hidden = named is not None and not re.match(r"\d|GPU-|MIG-", named.strip())
    return control.exists() and not hidden


def _option(command: Sequence[str], name: str, why: str) -> Setting:
    said = {name, name.replace("--", "--no-", 1)} & _names(command)
    return Setting(name=min(said, default=name), why=why, kept=bool(said), option=True)


def _names(command: Sequence[str]) -> set[str]:
    return {_name(word).partition("=")[0] for word in command if word.startswith("--")}


def _name(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word
