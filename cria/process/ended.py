"""Wait for processes to be gone, and end those that are ours to end."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack

from cria.inventory import Process


def wait(processes: Iterable[Process], seconds: float = 10.0) -> bool:
    """Wait until each of these processes has ended (a zombie has). False when time runs out."""
    deadline = time.monotonic() + seconds
    with ExitStack() as descriptors:
        for process in processes:
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            descriptors.callback(os.close, descriptor)
            left = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                return False
    return True


def kill(pids: Iterable[int]) -> None:
    """Send SIGKILL to each of these processes that still lives."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
