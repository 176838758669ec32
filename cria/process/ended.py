"""Wait for processes to be gone, and end those that are ours to end."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from cria.inventory import Process

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37  # include/uapi/linux/prctl.h


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


@contextmanager
def orphans_adopted() -> Iterator[None]:
    """Be the parent of orphaned descendants: an init that reaps late holds their PIDs for seconds.

    Whoever is in here has to reap them. Afterwards it is as it was: nobody else in this process would.
    """
    before = ctypes.c_int()
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, before.value)


def _prctl(option: int, value: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def reap(pids: Iterable[int]) -> None:
    """Reap those of these processes that are children of ours; they must have ended or be about to."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
