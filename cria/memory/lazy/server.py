"""The page server: an attendant for each process of the engine, each in a thread of its own."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cria.criu.images.memory import Memory
from cria.memory.lazy import working_set
from cria.memory.lazy.fault_handler import FaultHandler, Stages
from cria.memory.lazy.missing import Missing, Piece, complete_of, pieces_of
from cria.memory.lazy.pages import Pages
from cria.memory.lazy.protocol import Serve
from cria.memory.lazy.userfaultfd import Userfault

log = logging.getLogger(__name__)
FAILED = 1


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of one process in the images, and where its bytes come from."""

    memory: Memory
    pages: Pages


class Server:
    """Serves every process that CRIU handed over; `guardian` gets whatever else must not be closed."""

    def __init__(
        self,
        told: Serve,
        sources: Mapping[int, Source],
        handed: Mapping[int, int],
        stages: Stages,
        guardian: socket.socket,
    ) -> None:
        self._told, self._stages, self._guardian = told, stages, guardian
        self._given: list[tuple[int, int]] = []
        self._threads: list[threading.Thread] = []
        self._to_begin = threading.Semaphore(0)
        self._incomplete, self._counting = 0, threading.Lock()
        missing = {pid: Missing(list(pieces_of(s.memory))) for pid, s in sources.items()}
        self.bytes = sum(each.bytes for each in missing.values())
        kept = working_set.read(Path(told.working_set), told.checkpoint)
        wanted = working_set.in_order(kept, missing)
        self._records = kept is None
        self._attendants = [
            FaultHandler(
                pid,
                Userfault(descriptor),
                missing[pid],
                sources[pid].pages,
                whole=tuple(complete_of(sources[pid].memory)),
                wanted=wanted[pid],
                stages=stages,
                given=self._record,
                forked=self._attend_child,
                complete=self._complete,
                begun=self._to_begin.release,
            )
            for pid, descriptor in handed.items()
        ]

    def run(self) -> None:
        """Until all memory is where it belongs. A failure ends this process with FAILED."""
        threading.excepthook = _fail
        begin = time.monotonic()
        self._incomplete = len(self._attendants)
        for attendant in self._attendants:
            self._start(attendant)
        for _ in self._attendants:
            self._to_begin.acquire()
        self._guardian.send(b"begun")
        self._keep_working_set(time.monotonic())
        while self._threads:
            self._threads.pop().join()
        log.info("all %d MiB arrived after %.2f s", self.bytes >> 20, time.monotonic() - begin)

    def _start(self, attendant: FaultHandler) -> None:
        thread = threading.Thread(target=self._run, args=[attendant])
        thread.start()
        self._threads.append(thread)  # not before: it may be joined at once

    def _complete(self) -> None:
        with self._counting:
            self._incomplete -= 1
            if not self._incomplete:
                self._stages.arrived.set()

    def _run(self, attendant: FaultHandler) -> None:
        attendant.run()
        log.info("process %d: done, %d faults", attendant.pid, attendant.faults)

    def _attend_child(self, child: FaultHandler) -> None:
        """Its userfaultfd was opened here, so nobody else holds it yet."""
        socket.send_fds(self._guardian, [b"child"], [child.fault.descriptor])
        with self._counting:
            self._incomplete += 1
        self._start(child)

    def _record(self, pid: int, piece: Piece) -> None:
        if self._records:
            self._given.append((pid, piece.original))

    def _keep_working_set(self, begin: float) -> None:
        """What was given until the engine answered is what its next restore shall have first."""
        ready, _, _ = select.select(
            [self._stages.answered.descriptor], [], [], self._stages.answered_seconds
        )
        log.info(
            "answered after %.2f s, %d pieces given", time.monotonic() - begin, len(self._given)
        )
        if not ready or not self._records:
            return
        self._records = False
        kept = working_set.WorkingSet(checkpoint=self._told.checkpoint, pieces=tuple(self._given))
        try:
            working_set.write(Path(self._told.working_set), kept)
        except OSError as error:
            log.warning("the working set is not kept: %s", error)


def _fail(args: threading.ExceptHookArgs) -> None:
    """One process of an engine that gets no memory is an engine that hangs: the guardian ends it."""
    log.error("the page server fails", exc_info=args.exc_value)
    logging.shutdown()
    os._exit(FAILED)
