"""Wait for processes to be gone, and end those that are ours to end."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any

from cria.model.inventory import Process

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37  # include/uapi/linux/prctl.h


def wait_for_exit(processes: Iterable[Process], seconds: float = 10.0) -> bool:
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

    The code inside must reap them. Afterwards the setting is as before: nobody else here would reap.
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


_MOST_VECTORS = 1024  # IOV_MAX


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def write_memory(pid: int, content: bytes, places: Sequence[tuple[int, int]]) -> None:
    """Put `content` at `places` in the memory of `pid`: address and size of each, one after the other.

    The memory must be mapped and writable there. Raises OSError, also when not all could be written.
    """
    base = ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value or 0
    for begin in range(0, len(places), _MOST_VECTORS):
        some = places[begin : begin + _MOST_VECTORS]
        total = sum(size for _, size in some)
        ours = _Vector(base, total)
        theirs = (_Vector * len(some))(*(_Vector(*place) for place in some))
        written = _libc().process_vm_writev(pid, ctypes.byref(ours), 1, theirs, len(some), 0)
        if written < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        if written != total:
            raise OSError(0, f"{written} of {total} bytes were written")
        base += total


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_writev.restype = ctypes.c_ssize_t
    libc.process_vm_writev.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    return libc
