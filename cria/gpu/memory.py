"""The GPU memory of one engine: taken to the host before its dump, given back after it or after a restore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cria.errors import CudaUnsuitable, GpuLost, GpuNotGiven, GpuNotTaken
from cria.gpu import devices, driver
from cria.gpu.driver import Driver, DriverRefused
from cria.gpu.ranks import GoalMissed, Limits, Ranks
from cria.model.inventory import Descriptor, Inventory
from cria.model.manifest import GpuState
from cria.system.descriptors import descriptors
from cria.system.procfs import tree

# What the driver calls unsupported is more often memory that ranks share than the driver's age.
_SHARED = "ranks may share GPU memory (CUDA IPC, NVLS, UVM): start the engine with cria run -- CMD"


class GpuMemory:
    """That of an engine that is to be dumped and may live on."""

    def __init__(self, inventory: Inventory, *, limits: Limits | None = None) -> None:
        """Raises CudaUnsuitable when this host cannot take it."""
        self._inventory = inventory
        self._driver = driver.load()
        self._ranks = Ranks(
            self._driver, devices.cuda_processes(inventory, self._driver), limits=limits or Limits()
        )

    def save(self) -> GpuState:
        """Take it off the GPUs, of all processes or of none; no process holds a GPU then.

        Raises GpuNotTaken, or GpuLost where a process did not come through the attempt.
        """
        before, seen = self._resident(), list_devices(self._driver)
        try:
            self._ranks.reach("checkpointed")
        except GoalMissed as trouble:
            raise self._not_taken(trouble) from trouble
        held = list(open_gpu_descriptors(process.pid for process in self._inventory.processes))
        if held:
            self.restore()
            raise GpuNotTaken(
                f"{process_label(self._inventory, held[0].pid)} holds a GPU that it does not compute on",
                details="\n".join(f"{each.pid}: fd {each.fd} is {each.target}" for each in held),
                remedy="end that process, or let it be started anew instead of forked",
            )
        used, others = devices.split_used(self._ranks.pids, seen)
        return GpuState(
            ranks=self._ranks.pids,
            gpus=used,
            others=others,
            driver=".".join(map(str, driver.version() or ())),
            taken_bytes=max(0, self._resident() - before),
        )

    def restore(self) -> None:
        """Give each process its GPU, from wherever it is; nothing is done where all have theirs.

        Raises GpuLost.
        """
        try:
            self._ranks.reach("running")
        except GoalMissed as trouble:
            raise GpuLost(
                f"{self._named(trouble)} cannot be given its GPU memory back",
                details=describe(trouble, self._inventory),
            ) from trouble

    def _not_taken(self, trouble: GoalMissed) -> GpuNotTaken | GpuLost:
        details = describe(trouble, self._inventory)
        if trouble.undone:
            return GpuNotTaken(
                f"the GPU memory of {self._named(trouble)} cannot be taken",
                details=details,
                remedy=suggest_remedy(trouble),
            )
        return GpuLost(f"{self._named(trouble)} lost its GPU", details=details)

    def _named(self, trouble: GoalMissed) -> str:
        return process_label(self._inventory, next(iter(trouble.reasons), self._inventory.root.pid))

    def _resident(self) -> int:
        mine = set(self._ranks.pids)
        return sum(p.memory.resident for p in tree(self._inventory.root.pid) if p.pid in mine)


def restore(
    state: GpuState,
    root: int,
    *,
    gpu_map: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> None:
    """Give the restored engine with this root its GPUs. Raises GpuNotGiven and CudaUnsuitable.

    Its PIDs may be others than before, so the driver is asked which processes have CUDA state.
    """
    known = driver.load()
    pids = [process.pid for process in tree(root) if known.has_context(process.pid)]
    if len(pids) != len(state.ranks):
        raise GpuNotGiven(
            "the driver does not know the processes of the restored engine",
            details=f"{len(state.ranks)} were checkpointed, it knows {len(pids)}: {pids}",
        )
    try:
        Ranks(known, pids, limits=limits or Limits(), gpu_map=gpu_map).reach("running")
    except GoalMissed as trouble:
        raise GpuNotGiven(
            "the restored engine did not get its GPUs",
            details=describe(trouble),
            remedy=suggest_remedy(trouble),
        ) from trouble


def map_gpus(state: GpuState, wish: Mapping[str, str] | None = None) -> dict[str, str]:
    """The map from the GPUs of a checkpoint to those of this host.

    Raises CheckpointMismatch, UsageError, and CudaUnsuitable.
    """
    here = [device.gpu for device in list_devices(driver.load())]
    return devices.map_gpus(state.gpus, here, wish, others=state.others, driver=driver.version())


def list_devices(known: Driver) -> tuple[driver.Device, ...]:
    """The GPUs of this host. Raises CudaUnsuitable."""
    try:
        return known.devices()
    except DriverRefused as refused:
        raise CudaUnsuitable(
            "the GPUs of this host cannot be listed", details=str(refused)
        ) from refused


def open_gpu_descriptors(pids: Iterable[int]) -> Iterator[Descriptor]:
    """What leads to a GPU still: a process that forked and never computed, or one that only looked."""
    return (each for pid in pids for each in devices.gpu_descriptors(descriptors(pid)))


def process_label(inventory: Inventory | None, pid: int) -> str:
    """A process, with its part in the engine where that is known."""
    known = inventory.processes if inventory is not None else ()
    role = next((p.role.name for p in known if p.pid == pid), "unknown")
    return f"process {pid}" if role == "unknown" else f"process {pid} ({role})"


def describe(trouble: GoalMissed, inventory: Inventory | None = None) -> str:
    """Where every process is now, and why."""
    lines = (
        f"{process_label(inventory, pid)}: {STATE_DESCRIPTIONS[state]}"
        + (f"; {trouble.reasons[pid]}" if pid in trouble.reasons else "")
        for pid, state in trouble.states.items()
    )
    return "\n".join(lines)


STATE_DESCRIPTIONS = {
    "running": "running",
    "locked": "locked: its CUDA calls wait",
    "checkpointed": "checkpointed: its GPU memory lies on the host, its CUDA calls wait",
    "failed": "failed: the driver met an error from which this process cannot recover",
    None: "unknown: a call to the driver has not returned",
}


def suggest_remedy(trouble: GoalMissed) -> str | None:
    """What helps most likely, by the driver's words."""
    said = " ".join(trouble.reasons.values())
    if "NOT_READY" in said:
        return "it computed still: dump it at a still point, or with a larger --gpu-seconds"
    if "not supported" in said.lower() or "NOT_SUPPORTED" in said:
        return _SHARED
    if "no answer" in said:
        return f"--gpu-seconds LARGER; {_SHARED}"
    return None
