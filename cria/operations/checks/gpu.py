"""Checks of GPUs: what this host can take and give back, what an engine holds, where a checkpoint fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cria.checkpoint.handle import Checkpoint
from cria.engine.launch import gpus
from cria.errors import CriaError, CudaUnsuitable, EngineBlocked, NoSpace
from cria.gpu import devices, driver, memory
from cria.gpu.driver import Device, Driver
from cria.model.inventory import Inventory
from cria.operations.checks.rows import Row, fail, of_error, ok, skip, warn
from cria.system.host import available_memory
from cria.system.procfs import environment

_FABRIC = "/dev/nvidia-caps-imex-channels/"


def host(_place: Path) -> Iterator[Row]:
    """Whether GPU memory can be taken and given back here. No GPU is no fault."""
    installed = driver.version()
    if installed is None:
        yield skip("GPU", "no NVIDIA driver on this host")
        return
    shown = ".".join(map(str, installed))
    if installed[0] < driver.OLDEST_DRIVER:
        remedy = f"install driver {driver.OLDEST_DRIVER} or newer"
        yield warn("GPU driver", f"{shown} has no checkpoint API", remedy)
        return
    exchange = installed[0] >= driver.MAPPING_DRIVER
    yield ok(
        "GPU driver", f"{shown} has the checkpoint API; other GPUs: {'yes' if exchange else 'no'}"
    )
    if not driver.has_cuda_core():
        yield warn("cuda-core", "not installed", CudaUnsuitable.default_remedy)
        return
    try:
        yield from _devices(memory.list_devices(driver.load()))
    except CriaError as error:
        yield warn("GPUs", error.details or error.message, error.remedy)


def _devices(seen: Iterable[Device]) -> Iterator[Row]:
    for number, device in enumerate(seen):
        subject, what = f"GPU {number}", f"{device.gpu.name}, {device.gpu.memory_bytes >> 30} GiB"
        if device.mig:
            yield warn(
                subject, f"{what}: MIG is on, nothing on it can be checkpointed", _no_mig(device)
            )
        elif not device.persistent:
            yield warn(
                subject,
                f"{what}: without persistence mode each first use waits for it",
                f"nvidia-smi -pm 1 -i {device.gpu.uuid}",
            )
        else:
            yield ok(subject, what)


def engine(inventory: Inventory) -> Iterator[Row]:
    """What an engine holds of GPUs; one without costs nothing."""
    held = next(devices.gpu_descriptors(inventory.descriptors), None)
    if held is None:
        return
    lacking = driver.unavailable_reason()
    if lacking is not None:
        yield fail(
            f"{memory.process_label(inventory, held.pid)} has the device {held.target} open",
            f"fd {held.fd}; its GPU memory cannot be taken: {lacking}",
            CudaUnsuitable.default_remedy,
            CudaUnsuitable,
            pid=held.pid,
            fd=held.fd,
        )
        return
    try:
        loaded = driver.load()
        yield from _ranks(inventory, loaded, memory.list_devices(loaded))
    except CudaUnsuitable as error:
        yield of_error(error)


def _ranks(inventory: Inventory, loaded: Driver, seen: tuple[Device, ...]) -> Iterator[Row]:
    ranks = devices.cuda_processes(inventory, loaded)
    used, _ = devices.split_used(ranks, seen)
    for device in seen:
        if device.mig and device.gpu in used:
            value = f"MIG is on for {device.gpu.uuid}; the driver cannot checkpoint it"
            yield fail(
                "the engine computes on a part of a GPU", value, _no_mig(device), EngineBlocked
            )
    needed, free = (
        sum(device.used.get(pid, 0) for device in seen for pid in ranks),
        available_memory(),
    )
    if needed > free:
        yield fail(
            "too little memory for what lies on its GPUs",
            f"{needed >> 20} MiB lie there, {free >> 20} MiB are available on the host",
            "start the engine with --enable-sleep-mode, or end what uses memory",
            NoSpace,
        )
    yield ok("GPUs", f"{len(ranks)} processes compute on {len(used)}, with {needed >> 20} MiB")


def sharing(inventory: Inventory) -> Iterator[Row]:
    """What ranks share across GPUs, as far as it shows from outside: how the engine was started."""
    if not devices.uses_gpus(inventory):
        return
    root = inventory.root
    lacks = gpus.missing_settings(root.command, environment(root.pid))
    if lacks:
        yield warn(
            "ranks may share GPU memory, which the driver cannot checkpoint",
            f"started without {' '.join(lacks)}",
            "start the engine with: cria run -- CMD...",
            pid=root.pid,
        )
    for descriptor in devices.gpu_descriptors(inventory.descriptors):
        if descriptor.target.startswith(_FABRIC):
            yield warn(
                f"{memory.process_label(inventory, descriptor.pid)} may share memory over the NVLink fabric",
                f"fd {descriptor.fd} is {descriptor.target}",
                "start the engine on one node, without IMEX",
                pid=descriptor.pid,
                fd=descriptor.fd,
            )


def checkpoint(opened: Checkpoint) -> Iterator[Row]:
    """Whether the GPUs of a checkpoint are here, or others that can take their place."""
    state = opened.manifest.gpu_state
    if state is None:
        return
    try:
        moved = memory.map_gpus(state)
    except CriaError as error:
        yield of_error(error)
        return
    changed = sum(old != new for old, new in moved.items())
    yield ok("GPUs", f"{changed} become others" if changed else f"all {len(state.gpus)} are here")


def _no_mig(device: Device) -> str:
    return f"nvidia-smi -mig 0 -i {device.gpu.uuid}"


GPU_CHECKS = (host,)
