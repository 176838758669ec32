"""The supervisor of a page server: while it holds the userfaultfds, no missing page reads as zero.

The kernel lets a process go on with zeros when the last descriptor of its userfaultfd is closed. So two
processes have each descriptor: the page server, and the supervisor, which does nothing that could fail. If
the page server ends too early, the supervisor ends the engine. If the supervisor is killed, the kernel ends
the engine, which the supervisor traces, while the page server still has the descriptors.
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
from cria.memory.lazy import protocol
from cria.memory.lazy.protocol import Answered, Events, Failed, Ready, Rebuilt, Running
from cria.memory.lazy.userfaultfd import Userfaultfd
from cria.system import processes
from cria.system.procfs import tree

log = logging.getLogger(__name__)

_EXIT_SECONDS = 10  # how long a killed process may take to be gone


class Supervisor:
    """Watches the page server, the engine, and the restore until it ends."""

    def __init__(
        self,
        control: socket.socket,
        server: int,
        from_server: socket.socket,
        *,
        descriptors: Iterable[int],
        events: Events,
        missing_bytes: int,
    ) -> None:
        """Supervise the child `server`, which will load `missing_bytes` through `descriptors`.

        `control` is connected to the restore, `from_server` to the page server.
        """
        self._control, self._server, self._from_server = control, server, from_server
        self._events, self._missing_bytes = events, missing_bytes
        self._userfaultfds = [Userfaultfd(descriptor) for descriptor in descriptors]
        self._children: list[Userfaultfd] = []  # of processes that the engine has forked meanwhile
        self._engine: dict[int, int] = {}  # the PID of each process, by its pidfd
        self._is_rebuilt = False
        self._traced = TracedProcesses()
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._server_failed = False
        self._result: str | None = None

    def run(self) -> str:
        """Supervise until nothing is left to supervise. Return in one sentence how it ended."""
        waker, woken = socket.socketpair()
        for end in (waker, woken):
            end.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._watch(waker.fileno(), lambda: self._on_child_signal(waker))
        self._watch(self._control.fileno(), self._on_restore_message)
        self._watch(self._from_server.fileno(), self._on_server_message)
        self._on_child_signal(waker)
        while self._result is None:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._callbacks:
                    self._callbacks[descriptor]()
        self._wait_for_children()
        # Closed before the processes are detached: a process that waits for a page cannot be detached.
        for userfaultfd in (*self._userfaultfds, *self._children):
            userfaultfd.close()
        self._traced.detach()
        self._receive_remaining_messages()
        return self._result

    def _watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        self._callbacks[descriptor] = callback
        self._poll.register(descriptor, select.POLLIN)

    def _unwatch(self, descriptor: int) -> None:
        del self._callbacks[descriptor]
        self._poll.unregister(descriptor)

    def _on_restore_message(self) -> None:
        message, _ = protocol.receive(self._control)
        if isinstance(message, Rebuilt):
            self._is_rebuilt = True
            for pid in message.pids:
                with suppress(ProcessLookupError):
                    self._watch_process(pid)
            self._events.rebuilt.set()
        elif isinstance(message, Running):
            self._trace_all()
        elif isinstance(message, Answered):
            self._events.answered.set()
        else:  # the restore has closed: it is done, or it failed and has ended its processes
            self._unwatch(self._control.fileno())
            self._trace_all()
            if not self._is_rebuilt:
                self._result = "the restore failed before all processes were made"
                processes.kill([self._server])

    def _watch_process(self, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        self._engine[pidfd] = pid
        self._watch(pidfd, lambda: self._on_process_end(pidfd))

    def _trace_all(self) -> None:
        for pid in self._engine.values():
            try:
                self._traced.seize(pid)
            except ProcessLookupError:
                continue
            except OSError as error:
                log.warning("process %d does not end with its supervisor: %s", pid, error)

    def _on_process_end(self, pidfd: int) -> None:
        self._unwatch(pidfd)
        del self._engine[pidfd]
        if not self._engine:
            # The page server learns which processes are gone when it loads pages into them, and which
            # live: perhaps a child of which nothing is known here yet. So let it load everything now.
            self._events.answered.set()

    def _on_server_message(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._from_server, 16, 4)
        self._children += map(Userfaultfd, descriptors)
        if message == protocol.STARTED:
            with suppress(OSError):  # the restore has just ended
                protocol.send(self._control, Ready(missing=self._missing_bytes))
        elif not message:
            self._unwatch(self._from_server.fileno())

    def _on_child_signal(self, waker: socket.socket) -> None:
        with suppress(BlockingIOError):
            waker.recv(4096)
        status = self._traced.wait().get(self._server)
        if status == 0:
            self._result = "all memory is loaded" if self._engine else "the engine has ended"
        elif status is not None and self._result is None:
            self._server_failed = True
            self._end_engine(f"the page server ended with status {status}")

    def _end_engine(self, reason: str) -> None:
        """End the engine: its memory will never be complete, and threads that wait for a page would wait for ever."""
        self._result = f"{reason}: the engine was ended, because its memory was not complete"
        log.error(self._result)
        for pidfd, pid in self._engine.items():
            with suppress(NoSuchProcess):
                processes.kill(process.pid for process in tree(pid))
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in self._engine:
            select.select([pidfd], [], [], _EXIT_SECONDS)
        with suppress(OSError):
            protocol.send(self._control, Failed(why=self._result))

    def _wait_for_children(self) -> None:
        """Hold the userfaultfds of children that outlive the engine, when no page server loads their memory."""
        while self._server_failed and not all(
            child.process_has_ended() for child in self._children
        ):
            time.sleep(1)

    def _receive_remaining_messages(self) -> None:
        """Let a restore that is not done yet send its messages: all memory may be loaded before the engine answers."""
        with suppress(OSError):
            while not self._server_failed and protocol.receive(self._control)[0] is not None:
                pass


# Source: include/uapi/linux/ptrace.h.
_PTRACE_CONT, _PTRACE_DETACH, _PTRACE_SEIZE, _PTRACE_INTERRUPT = 7, 17, 0x4206, 0x4207
_PTRACE_LISTEN = 0x4208
_PTRACE_O_EXITKILL = 1 << 20
_PTRACE_EVENT_STOP = 128
_WALL = 0x40000000  # wait for children of every kind
_STOP_SIGNALS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class TracedProcesses:
    """Processes that the kernel kills when this process ends.

    `wait` must be called at each SIGCHLD: a traced process stops at every signal.
    """

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._is_detaching = False

    def seize(self, pid: int) -> None:
        """Trace `pid`. Raises OSError where another process traces it, or this one may not."""
        if pid not in self._pids:
            _ptrace(_PTRACE_SEIZE, pid, _PTRACE_O_EXITKILL)
            self._pids.add(pid)

    def wait(self) -> dict[int, int]:
        """Continue processes that have stopped. Return the exit status of those that have ended, by PID."""
        ended: dict[int, int] = {}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | _WALL)
            except ChildProcessError:
                return ended
            if not pid:
                return ended
            if os.WIFSTOPPED(status):
                self._go_on(pid, status)
            else:
                self._pids.discard(pid)
                ended[pid] = os.waitstatus_to_exitcode(status)

    def detach(self) -> None:
        """Stop tracing all processes; they run on."""
        self._is_detaching = True
        for pid in self._pids:
            with suppress(ProcessLookupError):
                _ptrace(_PTRACE_INTERRUPT, pid)
        while self._pids:
            try:
                pid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                self._go_on(pid, status)
            else:
                self._pids.discard(pid)

    def _go_on(self, pid: int, status: int) -> None:
        """Continue a stopped process as if nobody traced it (ptrace(2), "Group-stop").

        A process that was told to stop stays stopped, and any other signal is passed on to it.
        """
        event, number = status >> 16, os.WSTOPSIG(status)
        signal_to_pass = 0 if event else number
        with suppress(ProcessLookupError):
            if self._is_detaching:
                _ptrace(_PTRACE_DETACH, pid, signal_to_pass)
                self._pids.discard(pid)
            elif event == _PTRACE_EVENT_STOP and number in _STOP_SIGNALS:
                _ptrace(_PTRACE_LISTEN, pid)
            else:
                _ptrace(_PTRACE_CONT, pid, signal_to_pass)


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"process {pid}")
