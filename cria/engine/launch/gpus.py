"""Settings that let the GPU memory of an engine be checkpointed later.

Sources: NVIDIA/nvcf#1184 (measured with TP=2 and TP=4), NVIDIA/nccl#2337 (NVLS), NVIDIA/nvcf#891 (RDMA),
vllm/envs.py and vllm/engine/arg_utils.py of 0.32.
"""

from __future__ import annotations

import math
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
_SLEEP_MODE = "--enable-sleep-mode"
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
    """Yield what a command that starts vLLM on GPUs needs; options that it has already are `kept`."""
    if not is_vllm_command(command):
        return
    yield _option(
        command, _SLEEP_MODE, "lets vLLM free its KV cache before a dump: it is not stored then"
    )
    if rank_count(command) > 1:
        for name, (value, why) in _VARIABLES.items():
            yield Setting(name=name, value=value, why=why)
        yield _option(command, _NO_CUSTOM_ALL_REDUCE, f"{_SHARED} (CUDA IPC)")


def missing_settings(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the settings that keep ranks from sharing GPU memory, and that an engine was started without."""
    if rank_count(command) < 2:
        return ()
    missing = [
        f"{name}={value}"
        for name, (value, _) in _VARIABLES.items()
        if environment.get(name) != value
    ]
    if _NO_CUSTOM_ALL_REDUCE not in _option_names(command):
        missing.append(_NO_CUSTOM_ALL_REDUCE)
    return tuple(missing)


def rank_count(command: Sequence[str]) -> int:
    """Return the number of processes that compute together by a command: tensor x pipeline x data parallel."""
    sizes = dict.fromkeys(_SIZES, 1)
    for argument, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = _normalized(argument).partition("=")
        number = value if equals else following
        if name in _SIZES and number.isdecimal():
            sizes[name] = max(int(number), 1)
    return math.prod(sizes.values())


def is_vllm_command(command: Sequence[str]) -> bool:
    """Say whether options can be added to this command: it is vLLM itself and not a shell around it."""
    modules = any(argument.startswith("vllm.entrypoints") for argument in command)
    return modules or any(
        Path(first).name == "vllm" and second == "serve" for first, second in pairwise(command)
    )


def has_gpus(environment: Mapping[str, str], control_device: Path = CONTROL_DEVICE) -> bool:
    """Say whether an engine that is started on this host with `environment` would find GPUs."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and not re.match(r"\d|GPU-|MIG-", visible.strip())
    return control_device.exists() and not hidden


def _option(command: Sequence[str], name: str, why: str) -> Setting:
    given = {name, name.replace("--", "--no-", 1)} & _option_names(command)
    return Setting(name=min(given, default=name), why=why, kept=bool(given), option=True)


def _option_names(command: Sequence[str]) -> set[str]:
    options = (argument for argument in command if argument.startswith("--"))
    return {_normalized(option).partition("=")[0] for option in options}


def _normalized(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if argument.startswith("--") else argument
