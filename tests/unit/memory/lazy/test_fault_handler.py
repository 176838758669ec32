"""A fault handler starts when all processes are rebuilt, and ends when no process misses memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from cria.memory.lazy import userfaultfd
from cria.memory.lazy.fault_handler import FaultHandler
from cria.memory.lazy.missing import PIECE, Missing, PagesFile, Piece
from cria.memory.lazy.protocol import Event, Events
from cria.memory.lazy.userfaultfd import Message, Transfer, Userfaultfd


class StandIn(Userfaultfd):
    """A userfaultfd that reports what a test puts into it, and loads nothing."""

    def __init__(self, *messages: Message, transfer: Transfer = Transfer.DONE) -> None:
        super().__init__(os.eventfd(len(messages), os.EFD_NONBLOCK))
        self._messages = list(messages)
        self._transfer = transfer

    def messages(self) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages

    def copy(self, start: int, source: int, size: int) -> Transfer:
        return self._transfer

    def zero(self, start: int, size: int) -> Transfer:
        return self._transfer

    def unregister(self, start: int, size: int) -> bool:
        return True


class NoPages(PagesFile):
    """A pages file of zeros."""

    def __init__(self) -> None:
        pass

    def is_zero(self, offset: int, size: int) -> bool:
        return True

    def read_ahead(self, offset: int, size: int) -> None:
        pass


class Engine:
    """Processes whose handlers run in threads, and what these handlers have reported."""

    def __init__(self) -> None:
        self.events = Events(rebuilt=Event(), answered=Event(), loaded=Event(), answer_seconds=60.0)
        self.started = threading.Semaphore(0)
        self.complete = threading.Semaphore(0)
        self.threads: list[threading.Thread] = []

    def serve(self, descriptor: Userfaultfd, *pieces: Piece) -> threading.Thread:
        handler = FaultHandler(
            1,
            descriptor,
            Missing(list(pieces)),
            NoPages(),
            events=self.events,
            on_started=self.started.release,
            on_forked=lambda _child: None,
            on_complete=self.complete.release,
        )
        thread = threading.Thread(target=handler.run, daemon=True)
        thread.start()
        self.threads.append(thread)
        return thread


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    for event in (engine.events.rebuilt, engine.events.answered, engine.events.loaded):
        event.set()
    for thread in engine.threads:
        thread.join(10)
        assert not thread.is_alive()


def piece() -> Piece:
    return Piece(start=0, size=PIECE, original=0, offset=0)


def test_a_handler_whose_process_misses_nothing_starts_too(engine: Engine) -> None:
    """Otherwise the restore would wait for ever: it waits until every handler has started."""
    thread = engine.serve(StandIn())
    assert engine.complete.acquire(timeout=10)
    engine.events.loaded.set()

    assert not engine.started.acquire(timeout=0.1), "the process has not been rebuilt"
    engine.events.rebuilt.set()

    assert engine.started.acquire(timeout=10)
    thread.join(10)
    assert not thread.is_alive()


def test_a_handler_whose_process_has_ended_counts_as_started(engine: Engine) -> None:
    fault = Message(userfaultfd.PAGEFAULT, 0, 0, 0)

    engine.serve(StandIn(fault, transfer=Transfer.PROCESS_ENDED), piece())

    assert engine.started.acquire(timeout=10)
    assert engine.complete.acquire(timeout=10)


def test_nothing_but_faults_is_served_before_the_engine_answers(engine: Engine) -> None:
    engine.serve(StandIn(), piece())
    engine.events.rebuilt.set()

    assert engine.started.acquire(timeout=10)
    assert not engine.complete.acquire(timeout=0.1)
    engine.events.answered.set()

    assert engine.complete.acquire(timeout=10)
