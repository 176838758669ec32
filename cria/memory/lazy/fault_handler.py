"""Load the missing memory of one process: what its threads wait for first, everything else later."""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Iterable

from cria.criu.images.memory import Mapping
from cria.memory.lazy import userfaultfd
from cria.memory.lazy.missing import Missing, PagesFile, Piece
from cria.memory.lazy.protocol import Events
from cria.memory.lazy.userfaultfd import Message, Transfer, Userfaultfd

_LOAD_BYTES = 512 << 10  # copied at a time while no thread waits
_READ_AHEAD_BYTES = 8 << 20
_POLL_MILLISECONDS = 1000


class FaultHandler:
    """Loads the memory of one process until no process of the engine misses any.

    One thread does it all for a process: it reads the kernel's messages, and it loads the pages. What a
    message says has happened when it is read, and no page may be loaded where a mapping was before. A
    process that is complete is served further: it has to wait whenever it touches a new page or gives
    one back, until this handler has read the message.
    """

    def __init__(
        self,
        pid: int,
        descriptor: Userfaultfd,
        missing: Missing,
        pages: PagesFile,
        *,
        events: Events,
        complete_mappings: Iterable[Mapping] = (),
        working_set: Iterable[Piece] = (),
        on_started: Callable[[], None] = lambda: None,
        on_loaded: Callable[[int, Piece], None] = lambda _pid, _piece: None,
        on_forked: Callable[[FaultHandler], None],
        on_complete: Callable[[], None],
    ) -> None:
        """Serve the process `pid`, whose bytes lie in `pages`.

        `complete_mappings` are those that CRIU loads as a whole. `working_set` are the pieces that an
        earlier restore needed, in that order.

        `on_started` and `on_complete` are called once each: when the process can run, and when it misses
        nothing. `on_loaded` is called with each piece that is loaded, `on_forked` with the handler of
        each child, which misses what its parent misses.
        """
        self.pid, self.userfaultfd, self.missing, self.pages = pid, descriptor, missing, pages
        self.faults = 0
        self._events = events
        self._complete_mappings, self._working_set = complete_mappings, deque(working_set)
        self._on_started, self._on_loaded = on_started, on_loaded
        self._on_forked, self._on_complete = on_forked, on_complete
        self._waiting: deque[int] = deque()  # the addresses that threads wait for
        self._next_address = self._read_ahead_end = 0
        self._deadline = float("inf")  # when the engine counts as having answered
        self._rebuilt = self._answered = self._all_loaded = self._process_ended = False
        self._is_complete = False

    def run(self) -> None:
        poll = select.poll()
        events = self._events
        for descriptor in (
            self.userfaultfd.descriptor,
            events.rebuilt.descriptor,
            events.answered.descriptor,
            events.loaded.descriptor,
        ):
            poll.register(descriptor, select.POLLIN)
        # Not before all processes are rebuilt, even where none misses anything: the restore waits until
        # every handler has started.
        while not self._process_ended and not (self._rebuilt and self._all_loaded):
            if not self.missing.bytes:
                self._report_complete()
            self._read_messages()
            if self._waiting:
                self._serve_fault()
            elif sequence := self._choose():
                self._load(sequence)
            else:
                self._wait(poll)
        self._report_complete()
        if not self._rebuilt:  # the process ended before that
            self._on_started()

    def _report_complete(self) -> None:
        if not self._is_complete:
            self._is_complete = True
            self._on_complete()

    def _read_messages(self) -> None:
        """Apply what the kernel reports: changed mappings first, for these changes have happened."""
        messages = self.userfaultfd.messages()
        for message in messages:
            if message.kind != userfaultfd.PAGEFAULT:
                self._apply(message)
        self._waiting.extend(m.address for m in messages if m.kind == userfaultfd.PAGEFAULT)

    def _apply(self, message: Message) -> None:
        if message.kind in (userfaultfd.REMOVE, userfaultfd.UNMAP):
            start, end = message.first, message.second
            self.missing.drop(start, end)
        elif message.kind == userfaultfd.REMAP:
            start, to, size = message.first, message.second, message.third
            self.missing.move(start, to, size)
        elif message.kind == userfaultfd.FORK:
            self._on_forked(self._handler_of_child(Userfaultfd(message.descriptor)))
        else:
            raise ValueError(f"the kernel sent an unknown message: {message}")

    def _handler_of_child(self, descriptor: Userfaultfd) -> FaultHandler:
        return FaultHandler(
            self.pid,
            descriptor,
            self.missing.copy(),
            self.pages,
            events=self._events,
            on_forked=self._on_forked,
            on_complete=self._on_complete,
        )

    def _serve_fault(self) -> None:
        address = self._waiting[0]
        self.faults += 1
        piece = self.missing.at(address)
        if piece is None:
            transfer = self._note(self.userfaultfd.zero(address, self.missing.empty_from(address)))
        else:
            transfer = self._load([piece])
            self._next_address = piece.end
        if transfer is not Transfer.RETRY:
            self._waiting.popleft()

    def _load(self, sequence: list[Piece]) -> Transfer:
        """Load consecutive pieces in one go."""
        start, offset = sequence[0].start, sequence[0].offset
        size = sequence[-1].end - start
        if self.pages.is_zero(offset, size):
            transfer = self.userfaultfd.zero(start, size)
        else:
            transfer = self.userfaultfd.copy(start, self.pages.address(offset), size)
        if self._note(transfer) is not Transfer.RETRY:
            for piece in sequence:
                self.missing.mark_loaded(piece)
                self._on_loaded(self.pid, piece)
        return transfer

    def _note(self, transfer: Transfer) -> Transfer:
        self._process_ended = self._process_ended or transfer is Transfer.PROCESS_ENDED
        return transfer

    def _choose(self) -> list[Piece]:
        """Choose what to load while no thread waits; nothing while the process has not been rebuilt."""
        if not self._rebuilt:
            return []
        while self._working_set:
            piece = self._working_set.popleft()
            if not piece.loaded:
                return self._sequence_in_working_set(piece)
        if not self._answered:
            return []
        chosen = self.missing.first_from(self._next_address) or self.missing.first_from(0)
        if chosen is None:
            return []
        sequence = self.missing.sequence_from(chosen, _LOAD_BYTES)
        self._next_address = sequence[-1].end
        self._read_ahead(chosen.offset)
        return sequence

    def _sequence_in_working_set(self, piece: Piece) -> list[Piece]:
        """Return the pieces that follow this one in memory and in the working set too."""
        sequence = self.missing.sequence_from(piece, _LOAD_BYTES)
        count = 1
        while (
            count < len(sequence) and self._working_set and self._working_set[0] is sequence[count]
        ):
            self._working_set.popleft()
            count += 1
        return sequence[:count]

    def _read_ahead(self, offset: int) -> None:
        """Let the disk read while memory is copied, half a read-ahead before it is needed."""
        end = self._read_ahead_end
        if not end - _READ_AHEAD_BYTES <= offset < end - _READ_AHEAD_BYTES // 2:
            self.pages.read_ahead(offset, _READ_AHEAD_BYTES)
            self._read_ahead_end = offset + _READ_AHEAD_BYTES

    def _wait(self, poll: select.poll) -> None:
        """Wait for a message or an event, for a second at most."""
        ready = dict(poll.poll(_POLL_MILLISECONDS))
        events = self._events
        if events.rebuilt.descriptor in ready:
            poll.unregister(events.rebuilt.descriptor)
            self._start()
        if events.answered.descriptor in ready:
            poll.unregister(events.answered.descriptor)
            self._answered = True
        elif time.monotonic() > self._deadline:
            self._answered = True
        if events.loaded.descriptor in ready:
            poll.unregister(events.loaded.descriptor)
            self._all_loaded = True

    def _start(self) -> None:
        """Unregister complete mappings: CRIU has loaded what it loads.

        Before the process runs: it could move missing pages into one of them.
        """
        self._rebuilt = True
        self._deadline = time.monotonic() + self._events.answer_seconds
        for piece in self._working_set:
            self.pages.read_ahead(piece.offset, piece.size)
        for mapping in self._complete_mappings:
            self.userfaultfd.unregister(mapping.start, mapping.end - mapping.start)
        self._on_started()
