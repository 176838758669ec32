"""A stand-in for NVIDIA's driver that keeps its state machine, and fails where it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Literal

from cria.gpu.driver import Device, DriverRefused, State
from cria.model.manifest import Gpu

How = Literal["refuse", "fail", "hang", "slow", "moved"]
# Source: the driver's reference of cuCheckpointProcess*; every other state is CUDA_ERROR_ILLEGAL_STATE.
MOVES: dict[str, tuple[State, State]] = {
    "lock": ("running", "locked"),
    "checkpoint": ("locked", "checkpointed"),
    "restore": ("checkpointed", "locked"),
    "unlock": ("locked", "running"),
}
SLOW_SECONDS = 0.06


class Fault:
    """What goes wrong when `action` is asked of `pid`, and how often; None: always.

    refuse: an error, the state stays. fail: an error, the process is lost. hang: never returns.
    slow: takes longer than anybody waits, and works. moved: it works, and an error is answered.
    """

    def __init__(self, pid: int, action: str, how: How, times: int | None = 1) -> None:
        self.pid, self.action, self.how, self.times = pid, action, how, times

    def strikes(self, pid: int, action: str) -> bool:
        if (pid, action) != (self.pid, self.action) or self.times == 0:
            return False
        self.times = None if self.times is None else self.times - 1
        return True

    def __repr__(self) -> str:
        return f"{self.how}-{self.action}-{self.pid}-{self.times or 'always'}"


class StandIn:
    """Remembers every call. One that comes while another to that process is under way is an error."""

    def __init__(
        self,
        pids: Iterable[int],
        faults: Iterable[Fault] = (),
        devices: Iterable[Device] = (),
        state: State = "running",
    ) -> None:
        self.states: dict[int, State] = dict.fromkeys(pids, state)
        self.faults = list(faults)
        self.calls: list[tuple[str, int]] = []
        self.maps: list[Mapping[str, str]] = []
        self._devices = tuple(devices)
        self._busy: set[int] = set()
        self.released = threading.Event()  # ends the calls that hang, when the test is over

    def devices(self) -> tuple[Device, ...]:
        return self._devices

    def has_context(self, pid: int) -> bool:
        return pid in self.states

    def state(self, pid: int) -> State:
        return self.states[pid]

    def lock(self, pid: int, milliseconds: int) -> None:
        assert milliseconds > 0, "0 is no limit"
        self._do("lock", pid)

    def checkpoint(self, pid: int) -> None:
        self._do("checkpoint", pid)

    def restore(self, pid: int, gpu_map: Mapping[str, str]) -> None:
        self.maps.append(gpu_map)
        self._do("restore", pid)

    def unlock(self, pid: int) -> None:
        self._do("unlock", pid)

    def _do(self, action: str, pid: int) -> None:
        assert pid not in self._busy, f"{action} of {pid} while another call is under way"
        self._busy.add(pid)
        try:
            self.calls.append((action, pid))
            self._move(action, pid)
        finally:
            self._busy.discard(pid)

    def _move(self, action: str, pid: int) -> None:
        before, after = MOVES[action]
        if self.states[pid] != before:
            raise DriverRefused(f"CUDA_ERROR_ILLEGAL_STATE: {pid} is {self.states[pid]}")
        fault = next((f for f in self.faults if f.strikes(pid, action)), None)
        if fault is None:
            self.states[pid] = after
        elif fault.how == "hang":
            self.released.wait(30)
            raise DriverRefused("CUDA_ERROR_UNKNOWN: it was ended")
        elif fault.how == "slow":
            self.released.wait(SLOW_SECONDS)
            self.states[pid] = after
        elif fault.how == "moved":
            self.states[pid] = after
            raise DriverRefused("CUDA_ERROR_UNKNOWN: but it worked")
        elif fault.how == "fail":
            self.states[pid] = "failed"
            raise DriverRefused("CUDA_ERROR_UNKNOWN: uncorrectable")
        else:
            code = "CUDA_ERROR_NOT_READY" if action == "lock" else "CUDA_ERROR_OUT_OF_MEMORY"
            raise DriverRefused(code)


def gpu(number: int, name: str = "H200", gib: int = 141) -> Gpu:
    digits = f"{number:032x}"
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return Gpu(uuid=f"GPU-{'-'.join(parts)}", name=name, memory_bytes=gib << 30)
