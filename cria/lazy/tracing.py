"""Tie processes to this one: the kernel kills them when it ends, whatever ends it (ptrace(2), EXITKILL)."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress

_CONT, _DETACH, _SEIZE, _INTERRUPT, _LISTEN = 7, 17, 0x4206, 0x4207, 0x4208
_EXITKILL = 1 << 20
_EVENT_STOP = 128
_ALL = 0x40000000  # __WALL: children of every kind
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Tied:
    """Processes that end with this one. `attend` must be called whenever a child has changed (SIGCHLD)."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._leaving = False

    def tie(self, pid: int) -> None:
        """Raises OSError when somebody else traces it, or it is not allowed."""
        if pid in self._pids:
            return
        _ptrace(_SEIZE, pid, _EXITKILL)
        self._pids.add(pid)

    def attend(self) -> dict[int, int]:
        """Let those that stopped go on with their signal. Returns what else has ended: PID, exit code."""
        ended: dict[int, int] = {}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | _ALL)
            except ChildProcessError:
                return ended
            if not pid:
                return ended
            if os.WIFSTOPPED(status):
                self._go_on(pid, status)
            else:
                self._pids.discard(pid)
                ended[pid] = os.waitstatus_to_exitcode(status)

    def let_go(self) -> None:
        """Untie all of them; they run on."""
        self._leaving = True
        for pid in self._pids:
            with suppress(ProcessLookupError):
                _ptrace(_INTERRUPT, pid)
        while self._pids:
            try:
                pid, status = os.waitpid(-1, _ALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                self._go_on(pid, status)
            else:
                self._pids.discard(pid)

    def _go_on(self, pid: int, status: int) -> None:
        """A stop for the group stays one, a signal is passed on, any other stop was ours."""
        event, number = status >> 16, os.WSTOPSIG(status)
        signal_to_pass = 0 if event else number
        with suppress(ProcessLookupError):
            if self._leaving:
                _ptrace(_DETACH, pid, signal_to_pass)
                self._pids.discard(pid)
            elif event == _EVENT_STOP and number in _STOPS:
                _ptrace(_LISTEN, pid)
            else:
                _ptrace(_CONT, pid, signal_to_pass)


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"process {pid}")
