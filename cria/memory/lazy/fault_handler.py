"""A fact that threads and processes wait for together with file descriptors."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from cria.criu.images.memory import Mapping
from cria.memory.lazy import userfaultfd
from cria.memory.lazy.missing import Missing, Piece
from cria.memory.lazy.pages import Pages, address_of, is_zero
from cria.memory.lazy.userfaultfd import Message, Transfer, Userfault


class Event:
    """Becomes true once; `descriptor` is readable from then on, also in children that were forked before."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        os.eventfd_write(self.descriptor, 1)


_AT_ONCE = 512 << 10  # bytes that are copied while nobody waits
_EXPECT = 8 << 20  # bytes of the pages file that the kernel is asked to read ahead


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """Where the restore is: `rebuilt`, every process, none of which runs; `answered`, the engine has served.

    `arrived`: nobody misses anything any more.
    """

    rebuilt: Event
    answered: Event
    arrived: Event
    answered_seconds: float  # how long to wait for that


class FaultHandler:
    """Serves the process `pid` until nobody misses anything. Runs in a thread of its own and shares nothing.

    `wanted` are pieces in the order in which they were wanted in an earlier restore, `given` is told
    of each as it is copied, `forked` gets an attendant for a child with a copy of what is missing, and
    `complete` is told when this process misses nothing. It is heard all the same as long as its userfaultfd
    is held: it would wait for ever with its next new page, or to give one back.
    """

    def __init__(
        self,
        pid: int,
        fault: Userfault,
        missing: Missing,
        pages: Pages,
        *,
        whole: Iterable[Mapping],
        wanted: Iterable[Piece],
        stages: Stages,
        given: Callable[[int, Piece], None],
        forked: Callable[[FaultHandler], None],
        complete: Callable[[], None],
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self.pid, self.fault, self.missing, self.pages = pid, fault, missing, pages
        self._whole, self._wanted, self._stages = whole, deque(wanted), stages
        self._given, self._forked, self._begun = given, forked, begun
        self._complete, self._told_complete = complete, False
        self._waiting: deque[int] = deque()  # addresses that threads wait for
        self._next = self._expected = 0
        self._rebuilt = self._answered = self._arrived = self._ended = False
        self.faults = 0

    def run(self) -> None:
        poll = select.poll()
        for descriptor in (
            self.fault.descriptor,
            self._stages.rebuilt.descriptor,
            self._stages.answered.descriptor,
            self._stages.arrived.descriptor,
        ):
            poll.register(descriptor, select.POLLIN)
        while not self._arrived and not self._ended:
            if not self.missing.bytes:
                self._tell_complete()
            self._hear()
            if self._waiting:
                self._serve()
            elif row := self._choose():
                self._give(row)
            else:
                self._wait(poll)
        self._tell_complete()

    def _tell_complete(self) -> None:
        """Once."""
        if not self._told_complete:
            self._told_complete = True
            self._complete()

    def _hear(self) -> None:
        """Mappings first: what was read has happened, and pages may not be given to where they were."""
        messages = self.fault.messages()
        for message in messages:
            if message.kind != userfaultfd.FAULT:
                self._change(message)
        self._waiting.extend(m.address for m in messages if m.kind == userfaultfd.FAULT)

    def _change(self, message: Message) -> None:
        start, end = message.first, message.second
        if message.kind in (userfaultfd.REMOVE, userfaultfd.UNMAP):
            self.missing.drop(start, end)
        elif message.kind == userfaultfd.REMAP:
            self.missing.move(start, end, message.third)
        elif message.kind == userfaultfd.FORK:
            self._forked(self._child(Userfault(message.descriptor)))
        else:
            raise ValueError(f"the kernel said {message}")

    def _child(self, fault: Userfault) -> FaultHandler:
        return FaultHandler(
            self.pid,
            fault,
            self.missing.copy(),
            self.pages,
            whole=(),
            wanted=(),
            stages=self._stages,
            given=lambda _pid, _piece: None,
            forked=self._forked,
            complete=self._complete,
        )

    def _serve(self) -> None:
        address = self._waiting[0]
        self.faults += 1
        piece = self.missing.at(address)
        if piece is None:
            done = self._after(self.fault.zero(address, self.missing.empty_from(address)))
        else:
            done = self._give([piece])
            self._next = piece.end
        if done is not Transfer.LATER:
            self._waiting.popleft()

    def _give(self, row: list[Piece]) -> Transfer:
        """Pieces that follow each other, in one go."""
        start, size = row[0].start, row[-1].end - row[0].start
        buffer = self.pages.read(row[0].offset, size)
        source = address_of(buffer)
        zero = is_zero(source, size)
        given = self.fault.zero(start, size) if zero else self.fault.copy(start, source, size)
        if self._after(given) is not Transfer.LATER:
            for piece in row:
                self.missing.arrive(piece)
                self._given(self.pid, piece)
        return given

    def _after(self, given: Transfer) -> Transfer:
        self._ended = self._ended or given is Transfer.ENDED
        return given

    def _choose(self) -> list[Piece]:
        """What to give while nobody waits."""
        if not self._rebuilt:
            return []
        while self._wanted:
            piece = self._wanted.popleft()
            if not piece.arrived:
                return self._wanted_row(piece)
        if not self._answered:
            return []
        chosen = self.missing.first_from(self._next) or self.missing.first_from(0)
        if chosen is None:
            return []
        row = self.missing.row_from(chosen, _AT_ONCE)
        self._next = row[-1].end
        self._expect(chosen.offset)
        return row

    def _wanted_row(self, piece: Piece) -> list[Piece]:
        """As many as follow it both in memory and in the order in which they were wanted."""
        row = self.missing.row_from(piece, _AT_ONCE)
        count = 1
        while count < len(row) and self._wanted and self._wanted[0] is row[count]:
            self._wanted.popleft()
            count += 1
        return row[:count]

    def _expect(self, offset: int) -> None:
        """Have the disk read while memory is copied."""
        if not self._expected - _EXPECT <= offset < self._expected - _EXPECT // 2:
            self.pages.expect(offset, _EXPECT)
            self._expected = offset + _EXPECT

    def _wait(self, poll: select.poll) -> None:
        seconds = 1.0
        ready = dict(poll.poll(seconds * 1000))
        stages = self._stages
        if stages.rebuilt.descriptor in ready:
            poll.unregister(stages.rebuilt.descriptor)
            self._begin()
        if stages.answered.descriptor in ready:
            poll.unregister(stages.answered.descriptor)
            self._answered = True
        elif self._rebuilt and time.monotonic() > self._deadline:
            self._answered = True
        self._arrived = stages.arrived.descriptor in ready

    def _begin(self) -> None:
        """All that CRIU loads itself is there now, so a mapping without pieces is complete.

        Before the process runs: it might move missing pages there.
        """
        self._rebuilt = True
        self._deadline = time.monotonic() + self._stages.answered_seconds
        for piece in self._wanted:
            self.pages.expect(piece.offset, piece.size)
        for mapping in self._whole:
            self.fault.unregister(mapping.start, mapping.end - mapping.start)
        self._begun()
