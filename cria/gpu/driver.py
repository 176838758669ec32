"""Calls into the driver that may never return: each has a thread of its own and a deadline.

The driver knows a limit for locking only, and has been seen to hang in the others (NVIDIA/nccl#2340).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from cria.errors import CudaUnsuitable
from cria.model.manifest import Gpu

Call = Callable[[], None]


class CallTimedOut(Exception):
    """A call has not returned in time. It goes on: nothing can take it back."""


class DriverCalls:
    """Calls to the driver, one at a time for each process."""

    def __init__(self) -> None:
        self._busy: dict[int, threading.Thread] = {}

    def make(self, calls: Mapping[int, Call], seconds: float) -> dict[int, Exception]:
        """Make one call for each PID, all at once; return what went wrong, by PID."""
        wrong: dict[int, Exception] = {}
        for pid, call in calls.items():
            self._busy[pid] = threading.Thread(target=_run, args=(pid, call, wrong), daemon=True)
            self._busy[pid].start()
        stuck = self.wait(calls, seconds)
        # A copy: a late call would still write into the other.
        late: dict[int, Exception] = {
            pid: CallTimedOut(f"no answer in {seconds:g} s") for pid in stuck
        }
        return {**wrong, **late}

    def wait(self, pids: Iterable[int], seconds: float) -> set[int]:
        """Wait for calls under way; return the PIDs whose call goes on still."""
        deadline = time.monotonic() + seconds
        busy = {pid: self._busy[pid] for pid in pids if pid in self._busy}
        for thread in busy.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        return {pid for pid, thread in busy.items() if thread.is_alive()}


def _run(pid: int, call: Call, wrong: dict[int, Exception]) -> None:
    try:
        call()
    except DriverRefused as error:
        wrong[pid] = error


State = Literal["running", "locked", "checkpointed", "failed"]

OLDEST_DRIVER = 570
MAPPING_DRIVER = 580  # cuda-checkpoint's notes: "GPU migration"
VERSION = Path("/proc/driver/nvidia/version")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU of this host now. `used` is bytes by PID of who computes on it, as the host numbers them."""

    gpu: Gpu
    mig: bool = False
    persistent: bool = True
    used: dict[int, int] = {}


class DriverRefused(Exception):
    """The driver answered no; the text is its own."""


class Driver(Protocol):
    """What cria asks of the driver. All but `has_context` raise DriverRefused."""

    def devices(self) -> tuple[Device, ...]:
        """The GPUs of this host, in the order of NVML."""

    def has_context(self, pid: int) -> bool:
        """Whether a process uses CUDA."""

    def state(self, pid: int) -> State:
        """Where a process is on the way from running to checkpointed."""

    def lock(self, pid: int, milliseconds: int) -> None:
        """Running to locked: its CUDA calls block, and what was submitted ends. Stays running at the limit."""

    def checkpoint(self, pid: int) -> None:
        """Locked to checkpointed: device memory is in host memory, and no GPU is held."""

    def restore(self, pid: int, gpu_map: Mapping[str, str]) -> None:
        """Checkpointed to locked, on the GPUs that `gpu_map` names (UUID to UUID); empty: on the same."""

    def unlock(self, pid: int) -> None:
        """Locked to running."""


class Nvidia:
    """The driver of this host, through cuda.core.

    It lives as long as GPUs are given back: a restore needs persistence mode or a process that has
    called cuInit, and cuInit takes seconds where no process uses the GPUs.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver
        from cuda.core import checkpoint

        self._process = checkpoint.Process
        self._ask(lambda: _succeeded(driver.cuInit(0)))

    def devices(self) -> tuple[Device, ...]:
        from cuda.core import system

        found: tuple[Device, ...] = self._ask(
            lambda: tuple(map(_device, system.Device.get_all_devices()))
        )
        return found

    def has_context(self, pid: int) -> bool:
        # GetState also answers for processes that hold no context, as ai-dynamo/snapshot found.
        with suppress(DriverRefused):
            return bool(self._ask(lambda: self._process(pid).restore_thread_id) > 0)
        return False

    def state(self, pid: int) -> State:
        answer: State = self._ask(lambda: self._process(pid).state)
        return answer

    def lock(self, pid: int, milliseconds: int) -> None:
        self._ask(lambda: self._process(pid).lock(timeout_ms=milliseconds))

    def checkpoint(self, pid: int) -> None:
        self._ask(lambda: self._process(pid).checkpoint())

    def restore(self, pid: int, gpu_map: Mapping[str, str]) -> None:
        bare = {bare_uuid(old): bare_uuid(new) for old, new in gpu_map.items()}
        self._ask(lambda: self._process(pid).restore(gpu_mapping=bare or None))

    def unlock(self, pid: int) -> None:
        self._ask(lambda: self._process(pid).unlock())

    @staticmethod
    def _ask(call: Any) -> Any:
        try:
            return call()
        except Exception as error:  # CUDAError has no public name, the missing library another
            raise DriverRefused(str(error) or type(error).__name__) from error


def load() -> Driver:
    """The driver of this host. Raises CudaUnsuitable."""
    why_not = unavailable_reason()
    if why_not is not None:
        raise CudaUnsuitable("this host's GPU driver cannot be used", details=why_not)
    try:
        return Nvidia()
    except (DriverRefused, ImportError) as error:
        raise CudaUnsuitable(
            "this host's GPU driver cannot be used",
            details=str(error),
            remedy="see that nvidia-smi works, in the same container and as the same user",
        ) from error


def unavailable_reason() -> str | None:
    """What this host lacks, without loading anything; None where all seems to be there."""
    installed = version()
    if installed is None:
        return f"no NVIDIA driver: {VERSION} is not there"
    if installed[0] < OLDEST_DRIVER:
        shown = ".".join(map(str, installed))
        return f"driver {shown} has no checkpoint API, which came with {OLDEST_DRIVER}"
    if not has_cuda_core():
        return (
            "the Python package cuda-core is missing; from cria's checkout: pip install '.[cuda]'"
        )
    return None


def has_cuda_core() -> bool:
    try:
        return find_spec("cuda.core") is not None and find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # not even the namespace package is there
        return False


def version(file: Path = VERSION) -> tuple[int, ...] | None:
    """The version of the kernel driver, such as (580, 65, 6); None without a driver."""
    try:
        text = file.read_text()
    except OSError:
        return None
    found = re.search(r"\s(\d+(?:\.\d+)+)\s", text)
    return tuple(map(int, found[1].split("."))) if found else None


def bare_uuid(uuid: str) -> str:
    """A UUID as CUDA writes it, without NVML's prefix."""
    return uuid.removeprefix("GPU-")


def _device(device: Any) -> Device:
    gpu = Gpu(uuid=device.uuid, name=device.name, memory_bytes=device.memory_info.total)
    return Device(
        gpu=gpu,
        mig=_mig(device),
        persistent=bool(device.is_persistence_mode_enabled),
        used={each.pid: each.used_gpu_memory for each in device.compute_running_processes},
    )


def _mig(device: Any) -> bool:
    try:
        return bool(device.mig.mode)
    except Exception:  # noqa: BLE001 - NVML's "not supported", of a class without a public name
        return False


def _succeeded(answer: tuple[Any, ...]) -> None:
    if int(answer[0]) != 0:
        raise DriverRefused(f"cuInit: {answer[0]!s}")
