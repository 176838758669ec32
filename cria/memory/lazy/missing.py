"""What a process still misses: pieces of its memory by address, as they arrive, are dropped, or move."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import msgspec

from cria.criu.images.memory import LAZY, PAGE, VDSO, Mapping, Memory
from cria.errors import CheckpointMismatch

PIECE = (
    64 << 10
)  # bytes that come with a page: more is copied in the time of the fault, and wanted less often
_SMALLEST = 16 << 10  # on average, of the pieces in a row

# Source: mmap(2); vma_entry_can_be_lazy and the VMA_AREA_ bits of CRIU's include/image.h.
_PRIVATE, _ANONYMOUS, _LOCKED, _HUGETLB = 0x2, 0x20, 0x2000, 0x40000
_VSYSCALL, _VVAR = 1 << 2, 1 << 12


class Piece(msgspec.Struct, kw_only=True, eq=False):
    """Pages that follow each other: where they are wanted now and were at the dump; where they lie."""

    start: int
    size: int
    original: int
    offset: int
    arrived: bool = False

    @property
    def end(self) -> int:
        return self.start + self.size

    def cut(self, at: int) -> Piece:
        """Keep what lies below the address `at`; the rest becomes another piece."""
        below = at - self.start
        rest = Piece(
            start=at,
            size=self.size - below,
            original=self.original + below,
            offset=self.offset + below,
            arrived=self.arrived,
        )
        self.size = below
        return rest


class Missing:
    """The pieces of one process, none over another; those that have arrived stay listed."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = sorted(pieces, key=lambda piece: piece.start)
        self._starts = [piece.start for piece in self._pieces]
        self.bytes = sum(piece.size for piece in pieces if not piece.arrived)

    def at(self, address: int) -> Piece | None:
        """The piece with this address, if it has not arrived."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        piece = self._pieces[place]
        return piece if address < piece.end and not piece.arrived else None

    def first_from(self, address: int) -> Piece | None:
        """The first piece that begins at this address or above, and has not arrived."""
        for place in range(bisect_left(self._starts, address), len(self._pieces)):
            if not self._pieces[place].arrived:
                return self._pieces[place]
        return None

    def empty_from(self, address: int) -> int:
        """How many bytes from here, a piece's worth at most, are wanted by nobody."""
        piece = self.first_from(address)
        return min(PIECE, piece.start - address) if piece is not None else PIECE

    def arrive(self, piece: Piece) -> None:
        if not piece.arrived:
            piece.arrived = True
            self.bytes -= piece.size

    def row_from(self, piece: Piece, most: int) -> list[Piece]:
        """The piece and those that follow it, in memory and in the pages file, up to `most` bytes."""
        row = [piece]
        size = piece.size
        place = bisect_left(self._starts, piece.start) + 1
        for found in self._pieces[place : place + most // _SMALLEST]:
            size += found.size
            if found.arrived or found.start != row[-1].end or size > most:
                break
            if found.offset != row[-1].offset + row[-1].size:
                break
            row.append(found)
        return row

    def drop(self, start: int, end: int) -> list[Piece]:
        """Nobody wants what lay here any more. Returns what had not arrived."""
        places = self._within(start, end)
        dropped = [piece for piece in self._pieces[places] if not piece.arrived]
        del self._pieces[places], self._starts[places]
        for piece in dropped:
            self.arrive(piece)
        return dropped

    def move(self, start: int, to: int, size: int) -> None:
        """What lay here is wanted elsewhere now (mremap(2)); what was there is gone."""
        moved = self.drop(start, start + size)
        self.drop(to, to + size)
        for piece in moved:
            piece.start += to - start
            piece.arrived = False
            self._insert(piece)
            self.bytes += piece.size

    def copy(self) -> Missing:
        """The same for a child, which misses what its parent missed when it was forked."""
        return Missing([msgspec.structs.replace(piece) for piece in self._pieces])

    def _within(self, start: int, end: int) -> slice:
        """The places of the pieces in a range, cut at its bounds."""
        for bound in (start, end):
            place = bisect_right(self._starts, bound) - 1
            if place >= 0 and self._pieces[place].start < bound < self._pieces[place].end:
                self._insert(self._pieces[place].cut(bound))
        return slice(bisect_left(self._starts, start), bisect_left(self._starts, end))

    def _insert(self, piece: Piece) -> None:
        place = bisect_left(self._starts, piece.start)
        self._pieces.insert(place, piece)
        self._starts.insert(place, piece.start)


def pieces_of(memory: Memory) -> Iterator[Piece]:
    """What CRIU leaves out of a lazy restore, cut at the bounds of mappings: one call fills no two.

    Raises CheckpointMismatch for pages that are not in these images.
    """
    mappings = iter(memory.mappings)
    mapping = next(mappings)
    for run in memory.runs:
        if not run.flags & LAZY:
            continue
        if run.offset is None:
            raise CheckpointMismatch(
                f"memory of process {memory.pid} is not in the checkpoint",
                details=f"{run.size} bytes at {run.start:#x} were left to a page server or a parent",
            )
        start = run.start
        while start < run.end:
            while mapping.end <= start:
                mapping = next(mappings)
            end = min(run.end, mapping.end, start - start % PIECE + PIECE)
            offset = run.offset + start - run.start
            yield Piece(start=start, size=end - start, original=start, offset=offset)
            start = end


def complete_of(memory: Memory) -> Iterator[Mapping]:
    """The mappings that CRIU registers although nothing of them is left out.

    Whole ones: what lies between pieces stays registered, for a mapping that is registered in part is
    several to the kernel, and mremap(2) refuses that.
    """
    lazy = iter([run for run in memory.runs if run.flags & LAZY])
    run = next(lazy, None)
    for mapping in memory.mappings:
        while run is not None and run.end <= mapping.start:
            run = next(lazy, None)
        if _can_be_lazy(mapping) and (run is None or run.start >= mapping.end):
            yield mapping


def _can_be_lazy(mapping: Mapping) -> bool:
    wanted = _PRIVATE | _ANONYMOUS
    return (
        mapping.flags & wanted == wanted
        and not mapping.flags & (_LOCKED | _HUGETLB)
        and not mapping.status & (VDSO | _VSYSCALL | _VVAR)
    )


assert PIECE % PAGE == 0
