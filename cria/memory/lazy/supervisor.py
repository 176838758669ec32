"""The guardian of a page server: while it holds the userfaultfds, no missing page reads as zeros.

The kernel lets a process go on with zeros where the last descriptor of its userfaultfd is closed. So two
processes hold each: the page server, and this one, which does nothing that could fail. When the page
server ends before its time, the guardian ends the engine; when the guardian is killed the kernel does,
for it is tied to it, while the page server still holds the descriptors.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from cria.errors import NoSuchProcess
from cria.memory.lazy.fault_handler import Stages
from cria.memory.lazy.protocol import Answered, Failed, Ready, Rebuilt, Running, receive, send
from cria.memory.lazy.userfaultfd import Userfault
from cria.system import processes
from cria.system.procfs import tree

log = logging.getLogger(__name__)


class Supervisor:
    """Watches the page server `server`, which will send `missing` bytes, and the engine."""

    def __init__(
        self,
        control: socket.socket,
        server: int,
        from_server: socket.socket,
        *,
        held: Iterable[int],
        stages: Stages,
        missing: int,
    ) -> None:
        self._control, self._server, self._from_server = control, server, from_server
        self._stages, self._missing = stages, missing
        self._pids: tuple[int, ...] = ()
        self._engine: dict[int, int] = {}  # pidfd to PID
        self._tied = Tied()
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self.result: str | None = None
        self._server_failed = False
        self._held = [Userfault(descriptor) for descriptor in held]
        self._children: list[Userfault] = []  # of processes that it does not know by PID

    def run(self) -> str:
        """Until nothing is left to guard. Returns in one sentence how it ended."""
        waker, woken = socket.socketpair()
        for end in (waker, woken):
            end.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._watch(waker.fileno(), lambda: self._child_changed(waker))
        self._watch(self._control.fileno(), self._restore_said)
        self._watch(self._from_server.fileno(), self._server_said)
        self._child_changed(waker)
        while self.result is None:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._handlers:
                    self._handlers[descriptor]()
        self._wait_for_children()
        # Before the processes are let go: one that waits for a page cannot be.
        for userfault in (*self._held, *self._children):
            userfault.close()
        self._tied.let_go()
        self._hear_out_the_restore()
        return self.result

    def _hear_out_the_restore(self) -> None:
        """All may have arrived before the engine has answered: nobody fails for telling us so."""
        with suppress(OSError):
            while not self._server_failed and receive(self._control)[0] is not None:
                pass

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def _unwatch(self, descriptor: int) -> None:
        del self._handlers[descriptor]
        self._poll.unregister(descriptor)

    def _restore_said(self) -> None:
        word, _ = receive(self._control)
        if isinstance(word, Rebuilt):
            self._pids = word.pids
            for pid in word.pids:
                with suppress(ProcessLookupError):
                    self._guard(pid)
            self._stages.rebuilt.set()
        elif isinstance(word, Running):
            self._tie_all()
        elif isinstance(word, Answered):
            self._stages.answered.set()
        else:  # it hung up: it is done, or it failed and has taken its processes down
            self._unwatch(self._control.fileno())
            self._tie_all()
            if not self._pids:
                self._end("the restore did not come to pass")

    def _guard(self, pid: int) -> None:
        descriptor = os.pidfd_open(pid)
        self._engine[descriptor] = pid
        self._watch(descriptor, lambda: self._process_ended(descriptor))

    def _tie_all(self) -> None:
        for pid in self._engine.values():
            try:
                self._tied.tie(pid)
            except ProcessLookupError:
                continue
            except OSError as error:
                log.warning("process %d does not end with its guardian: %s", pid, error)

    def _process_ended(self, descriptor: int) -> None:
        self._unwatch(descriptor)
        del self._engine[descriptor]
        if not self._engine:
            # The page server sees who is gone as soon as it gives them something, and who lives on:
            # a child of whom nothing was heard here yet, perhaps.
            self._stages.answered.set()

    def _server_said(self) -> None:
        said, descriptors, _, _ = socket.recv_fds(self._from_server, 16, 4)
        self._children += map(Userfault, descriptors)
        if said == b"begun":
            send(self._control, Ready(missing=self._missing))
        elif not said:
            self._unwatch(self._from_server.fileno())

    def _child_changed(self, waker: socket.socket) -> None:
        with suppress(BlockingIOError):
            waker.recv(4096)
        code = self._tied.attend().get(self._server)
        if code == 0:
            self.result = "all memory has arrived" if self._engine else "the engine has ended"
        elif code is not None and self.result is None:
            self._server_failed = True
            self._end_the_engine(f"the page server ended with status {code}")

    def _end_the_engine(self, why: str) -> None:
        """Its memory can never be whole, and until it is gone all that wait for a page go on waiting."""
        self.result = f"{why}: the engine, whose memory was not whole, was ended"
        log.error(self.result)
        for descriptor, pid in self._engine.items():
            with suppress(NoSuchProcess):
                processes.kill(process.pid for process in tree(pid))
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        for descriptor in self._engine:
            select.select([descriptor], [], [], 10)
        with suppress(OSError):
            send(self._control, Failed(why=self.result))

    def _wait_for_children(self) -> None:
        """Those of processes that are gone may live on: when nobody can serve them, they wait as long."""
        while any(not child.is_over() for child in self._children) and self._server_failed:
            time.sleep(1)

    def _end(self, why: str) -> None:
        self.result = why
        processes.kill([self._server])


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
