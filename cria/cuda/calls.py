"""Calls into the driver that may never return: each has a thread of its own and a deadline.

The driver knows a limit for locking only, and has been seen to hang in the others (NVIDIA/nccl#2340).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from cria.cuda.driver import DriverRefused

Call = Callable[[], None]


class StillBusy(Exception):
    """A call has not returned in time. It goes on: nothing can take it back."""


class Calls:
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
            pid: StillBusy(f"no answer in {seconds:g} s") for pid in stuck
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
