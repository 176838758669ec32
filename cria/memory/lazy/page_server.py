"""The page server loads the memory of an engine that runs already; its supervisor forks it.

It is cria's own, and not `criu lazy-pages`: that loads 4 KiB at a fault, knows no working set, and when it
dies the kernel gives the engine zeros. It is written in Python because the time goes into copying, which the
kernel does.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from cria.criu.images.directory import CriuImages
from cria.criu.images.memory import Memory
from cria.errors import CriaError
from cria.memory.lazy import protocol, working_set
from cria.memory.lazy.fault_handler import FaultHandler
from cria.memory.lazy.missing import Missing, PagesFile, Piece, complete_mappings, lazy_pieces
from cria.memory.lazy.protocol import PROCESS_NAME, Event, Events, Failed, HandoffFailed, Serve
from cria.memory.lazy.supervisor import Supervisor
from cria.memory.lazy.userfaultfd import Userfaultfd
from cria.memory.lazy.working_set import WorkingSet

log = logging.getLogger("cria.lazy")
_FAILED = 1  # exit status


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of one process in the images, and the file with its bytes."""

    memory: Memory
    pages: PagesFile


class PageServer:
    """Serves every process of one engine, each with a fault handler in a thread of its own.

    `missing_bytes` is what is to be loaded.
    """

    def __init__(
        self,
        request: Serve,
        sources: Mapping[int, Source],
        descriptors: Mapping[int, int],
        events: Events,
        supervisor: socket.socket,
    ) -> None:
        """Serve the processes `sources`, by PID, whose userfaultfds are `descriptors`.

        The supervisor gets the userfaultfds of children, for it has to keep them open too.
        """
        self._request, self._events, self._supervisor = request, events, supervisor
        self._loaded_pieces: list[tuple[int, int]] = []
        self._threads: list[threading.Thread] = []
        self._started = threading.Semaphore(0)
        self._incomplete, self._incomplete_lock = 0, threading.Lock()
        missing = {
            pid: Missing(list(lazy_pieces(source.memory))) for pid, source in sources.items()
        }
        self.missing_bytes = sum(pieces.bytes for pieces in missing.values())
        known = working_set.read(Path(request.working_set), request.checkpoint)
        needed = working_set.pieces(known, missing)
        self._records_working_set = known is None
        self._handlers = [
            FaultHandler(
                pid,
                Userfaultfd(descriptor),
                missing[pid],
                sources[pid].pages,
                events=events,
                complete_mappings=tuple(complete_mappings(sources[pid].memory)),
                working_set=needed[pid],
                on_started=self._started.release,
                on_loaded=self._record,
                on_forked=self._serve_child,
                on_complete=self._count_complete,
            )
            for pid, descriptor in descriptors.items()
        ]

    def run(self) -> None:
        """Serve until all memory is loaded. A failure ends this process with status 1."""
        threading.excepthook = _fail
        begin = time.monotonic()
        self._incomplete = len(self._handlers)
        for handler in self._handlers:
            self._start(handler)
        for _ in self._handlers:
            self._started.acquire()
        self._supervisor.send(protocol.STARTED)
        self._keep_working_set(time.monotonic())
        while self._threads:
            self._threads.pop().join()
        seconds = time.monotonic() - begin
        log.info("all %d MiB loaded after %.2f s", self.missing_bytes >> 20, seconds)

    def _start(self, handler: FaultHandler) -> None:
        thread = threading.Thread(target=self._run, args=[handler])
        thread.start()
        self._threads.append(thread)  # not before it is started, for run() may join it at once

    def _run(self, handler: FaultHandler) -> None:
        handler.run()
        log.info("process %d: complete after %d faults", handler.pid, handler.faults)

    def _count_complete(self) -> None:
        with self._incomplete_lock:
            self._incomplete -= 1
            if not self._incomplete:
                self._events.loaded.set()

    def _serve_child(self, child: FaultHandler) -> None:
        descriptor = child.userfaultfd.descriptor
        socket.send_fds(self._supervisor, [protocol.CHILD], [descriptor])
        with self._incomplete_lock:
            self._incomplete += 1
        self._start(child)

    def _record(self, pid: int, piece: Piece) -> None:
        if self._records_working_set:
            self._loaded_pieces.append((pid, piece.original))

    def _keep_working_set(self, begin: float) -> None:
        """Wait until the engine has answered, and keep what was loaded until then for its next restore.

        Not longer than until all memory is loaded: this process must end then. An engine that touches a
        new page waits as long as this process has the userfaultfd.
        """
        events = self._events
        ready, _, _ = select.select(
            [events.answered.descriptor, events.loaded.descriptor], [], [], events.answer_seconds
        )
        seconds, count = time.monotonic() - begin, len(self._loaded_pieces)
        log.info("%d pieces loaded in %.2f s, until the engine answered", count, seconds)
        if not ready or not self._records_working_set:
            return
        self._records_working_set = False
        kept = WorkingSet(checkpoint=self._request.checkpoint, pieces=tuple(self._loaded_pieces))
        try:
            working_set.write(Path(self._request.working_set), kept)
        except OSError as error:
            log.warning("the working set is not kept: %s", error)


def main() -> None:
    """Run the supervisor and its page server: `CONTROL SOCKET LOG` are two descriptors and a path."""
    control = socket.socket(fileno=int(sys.argv[1]))
    listener = socket.socket(fileno=int(sys.argv[2]))
    logging.basicConfig(filename=sys.argv[3], level=logging.INFO, format="%(asctime)s %(message)s")
    sys.excepthook = lambda *error: log.error("the page server fails", exc_info=error)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # without this process the engine ends
    Path("/proc/self/comm").write_text(PROCESS_NAME)
    request, descriptors = protocol.receive(control)
    if not isinstance(request, Serve):
        return
    try:
        sources = _open_sources(Path(f"/proc/self/fd/{descriptors[0]}"), request)
        channel = _accept(listener, control)
        if channel is not None:
            _serve(request, sources, channel, control)
    except (CriaError, HandoffFailed) as error:
        log.error("%s", error)
        with suppress(BrokenPipeError):  # the restore has failed before
            protocol.send(control, Failed(why=str(error)))


def _open_sources(directory: Path, request: Serve) -> dict[int, Source]:
    """Open all that will be read before CRIU begins, so that the checkpoint may be removed."""
    images = CriuImages(directory, Path(request.criu))
    sources = {}
    for pid in request.pids:
        memory = images.memory(pid)
        sources[pid] = Source(memory=memory, pages=PagesFile(directory / memory.pages_file))
    return sources


def _accept(listener: socket.socket, control: socket.socket) -> socket.socket | None:
    """Accept CRIU's connection; None where the restore ends before."""
    ready, _, _ = select.select([listener, control], [], [])
    return listener.accept()[0] if listener in ready else None


def _serve(
    request: Serve, sources: dict[int, Source], channel: socket.socket, control: socket.socket
) -> None:
    """Fork the page server, and supervise it."""
    descriptors = protocol.receive_userfaultfds(channel, request.pids)
    events = Events(
        rebuilt=Event(),
        answered=Event(),
        loaded=Event(),
        answer_seconds=request.answer_seconds,
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = PageServer(request, sources, descriptors, events, theirs)
    pid = os.fork()
    if not pid:
        control.close()
        ours.close()
        status = _FAILED
        try:
            server.run()
            status = 0
        finally:
            logging.shutdown()
            os._exit(status)
    theirs.close()
    supervisor = Supervisor(
        control,
        pid,
        ours,
        descriptors=descriptors.values(),
        events=events,
        missing_bytes=server.missing_bytes,
    )
    log.info("%s", supervisor.run())


def _fail(args: threading.ExceptHookArgs) -> None:
    """End the page server: an engine of which one process gets no memory hangs. The supervisor ends it."""
    log.error("the page server fails", exc_info=args.exc_value)
    logging.shutdown()
    os._exit(_FAILED)
