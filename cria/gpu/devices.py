"""Which processes hold GPUs, which GPUs those are, and onto which others they can come back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from cria.errors import CheckpointMismatch, UsageError
from cria.gpu.driver import MAPPING_DRIVER, Device, Driver
from cria.model.inventory import Descriptor, Inventory
from cria.model.manifest import Gpu

NODES = "/dev/nvidia"


def gpu_descriptors(held: Iterable[Descriptor]) -> Iterator[Descriptor]:
    """Those that lead to a GPU or to its driver."""
    return (each for each in held if each.kind == "device" and each.target.startswith(NODES))


def uses_gpus(inventory: Inventory) -> bool:
    """Whether any process of an engine has a GPU open. Asks nobody: an engine without pays nothing."""
    return any(True for _ in gpu_descriptors(inventory.descriptors))


def cuda_processes(inventory: Inventory, driver: Driver) -> tuple[int, ...]:
    """The processes that compute on a GPU; others hold it open to count GPUs, or inherited it."""
    holders = dict.fromkeys(each.pid for each in gpu_descriptors(inventory.descriptors))
    return tuple(pid for pid in holders if driver.has_context(pid))


def split_used(
    pids: Iterable[int], devices: Sequence[Device]
) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...]]:
    """The GPUs on which `pids` compute, and the others. All count as used where NVML shows none of them.

    Inside a container it sees no PIDs of the host.
    """
    wanted = set(pids)
    used = tuple(device.gpu for device in devices if wanted & device.used.keys())
    if not used:
        return tuple(device.gpu for device in devices), ()
    return used, tuple(device.gpu for device in devices if device.gpu not in used)


def map_gpus(
    recorded: Sequence[Gpu],
    here: Sequence[Gpu],
    wish: Mapping[str, str] | None = None,
    *,
    others: Sequence[Gpu] = (),
    driver: tuple[int, ...] | None = None,
) -> dict[str, str]:
    """The map from recorded to present GPUs, by UUID; empty where every GPU is the one it was.

    A GPU that is not wished elsewhere stays where it is, else takes the next free one of its kind: the
    driver wants one of the same chip with enough memory. It wants a map to name the `others` that it
    showed too, although nothing lies there: as many as find a place. `driver` is the version here.
    Raises CheckpointMismatch, and UsageError for a wish that names unknown GPUs.
    """
    chosen = dict(_wished([*recorded, *others], here, wish or {}))
    _place([gpu for gpu in recorded if gpu.uuid not in chosen], here, chosen)
    homeless = [gpu for gpu in recorded if gpu.uuid not in chosen]
    if homeless:
        raise _no_gpu_for(homeless[0], here)
    if all(old == new for old, new in chosen.items()):
        return {}
    if driver is not None and driver[0] < MAPPING_DRIVER:
        raise CheckpointMismatch(
            "this driver gives an engine only the GPUs it had",
            details=f"driver {'.'.join(map(str, driver))}; {_list(recorded)} were recorded",
            remedy=f"install driver {MAPPING_DRIVER} or newer, or restore it on the host of the dump",
        )
    _place([gpu for gpu in others if gpu.uuid not in chosen], here, chosen)
    return chosen


def _place(gpus: Sequence[Gpu], here: Sequence[Gpu], chosen: dict[str, str]) -> None:
    """Give each GPU itself, then what is left the next free one that is like it, if there is one."""
    for alike in (_same, _like):
        for gpu in gpus:
            free = (g for g in here if g.uuid not in chosen.values() and alike(gpu, g))
            place = None if gpu.uuid in chosen else next(free, None)
            if place is not None:
                chosen[gpu.uuid] = place.uuid


def parse_gpu_map(words: Iterable[str]) -> dict[str, str]:
    """Read wishes such as GPU-1c2...=GPU-7fe...; raises UsageError."""
    pairs = [word.partition("=") for word in words]
    bad = [old + equals + new for old, equals, new in pairs if not (old and new)]
    if bad:
        raise UsageError(f"{bad[0]} names no pair of GPUs", remedy="--gpu OLD-UUID=NEW-UUID")
    return {_full(old): _full(new) for old, _, new in pairs}


def _wished(
    recorded: Sequence[Gpu], here: Sequence[Gpu], wish: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    old_ones, new_ones = {g.uuid: g for g in recorded}, {g.uuid: g for g in here}
    for old, new in wish.items():
        if old not in old_ones or new not in new_ones:
            raise UsageError(
                f"there is no GPU {old if old not in old_ones else new}",
                details=f"in the checkpoint: {_list(recorded)}\non this host: {_list(here)}",
                remedy="--gpu OLD-UUID=NEW-UUID",
            )
        if not _like(old_ones[old], new_ones[new]):
            raise _no_gpu_for(old_ones[old], [new_ones[new]])
        yield old, new
    twice = {new for new in wish.values() if list(wish.values()).count(new) > 1}
    if twice:
        raise UsageError(f"two GPUs would become {min(twice)}", remedy="name each GPU once")


def _same(old: Gpu, new: Gpu) -> bool:
    return new.uuid == old.uuid


def _like(old: Gpu, new: Gpu) -> bool:
    return new.name == old.name and new.memory_bytes >= old.memory_bytes


def _no_gpu_for(gpu: Gpu, here: Sequence[Gpu]) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"no GPU here can take the place of {gpu.uuid}",
        details=f"recorded: {_shown(gpu)}\nhere: {_list(here) or 'none'}",
        remedy="restore it on a host with as many GPUs of that kind: nvidia-smi -L",
    )


def _list(gpus: Iterable[Gpu]) -> str:
    return "; ".join(map(_shown, gpus))


def _shown(gpu: Gpu) -> str:
    return f"{gpu.uuid} ({gpu.name}, {gpu.memory_bytes >> 20} MiB)"


def _full(uuid: str) -> str:
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
