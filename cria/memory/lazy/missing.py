"""The memory that a process misses: pieces by address, and where in the pages file their bytes lie."""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cria.criu.images.memory import LAZY, MAP_ANONYMOUS, MAP_PRIVATE, VDSO, Mapping, Memory
from cria.errors import CheckpointMismatch

# Bytes that are loaded with a page. More takes longer to copy than the page fault itself, and is less often
# needed. A multiple of the page size.
PIECE = 64 << 10
_SMALLEST = 16 << 10  # the average size of the pieces in a sequence is at least this

# Source: mmap(2); vma_entry_can_be_lazy and the VMA_AREA_ bits in CRIU's include/image.h.
_MAP_LOCKED, _MAP_HUGETLB = 0x2000, 0x40000
_VSYSCALL, _VVAR = 1 << 2, 1 << 12

_libc = ctypes.CDLL(None, use_errno=True)
_ZEROS = ctypes.create_string_buffer(1 << 20)


class Piece(msgspec.Struct, kw_only=True, eq=False):
    """Consecutive pages of a process.

    They belong at `start`, were at `original` at the dump, and lie at `offset` in the pages file.
    """

    start: int
    size: int
    original: int
    offset: int
    loaded: bool = False

    @property
    def end(self) -> int:
        return self.start + self.size

    def split(self, address: int) -> Piece:
        """Keep what lies below `address`, and return the rest as another piece."""
        size = address - self.start
        rest = Piece(
            start=address,
            size=self.size - size,
            original=self.original + size,
            offset=self.offset + size,
            loaded=self.loaded,
        )
        self.size = size
        return rest


class Missing:
    """The pieces of one process, which do not overlap. Those that are loaded stay in the list."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = sorted(pieces, key=lambda piece: piece.start)
        self._starts = [piece.start for piece in self._pieces]
        self.bytes = sum(piece.size for piece in pieces if not piece.loaded)

    def at(self, address: int) -> Piece | None:
        """Return the piece that contains this address, unless it is loaded."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        piece = self._pieces[index]
        return piece if address < piece.end and not piece.loaded else None

    def first_from(self, address: int) -> Piece | None:
        """Return the first piece at this address or above that is not loaded."""
        for index in range(bisect_left(self._starts, address), len(self._pieces)):
            if not self._pieces[index].loaded:
                return self._pieces[index]
        return None

    def empty_from(self, address: int) -> int:
        """Return how many bytes from here belong to no piece; the size of a piece at most."""
        piece = self.first_from(address)
        return min(PIECE, piece.start - address) if piece is not None else PIECE

    def mark_loaded(self, piece: Piece) -> None:
        if not piece.loaded:
            piece.loaded = True
            self.bytes -= piece.size

    def sequence_from(self, piece: Piece, most: int) -> list[Piece]:
        """Return this piece and those that follow it in memory and in the pages file.

        They have `most` bytes together at most.
        """
        sequence = [piece]
        size = piece.size
        index = bisect_left(self._starts, piece.start) + 1
        for following in self._pieces[index : index + most // _SMALLEST]:
            last = sequence[-1]
            size += following.size
            if following.loaded or following.start != last.end or size > most:
                break
            if following.offset != last.offset + last.size:
                break
            sequence.append(following)
        return sequence

    def drop(self, start: int, end: int) -> list[Piece]:
        """Drop the pieces in a range that the process has given back. Return those that were not loaded."""
        indexes = self._split_range(start, end)
        dropped = [piece for piece in self._pieces[indexes] if not piece.loaded]
        del self._pieces[indexes], self._starts[indexes]
        for piece in dropped:
            self.mark_loaded(piece)
        return dropped

    def move(self, start: int, to: int, size: int) -> None:
        """Move the pieces in a range, as the process has done with mremap(2); what was at `to` is gone."""
        moved = self.drop(start, start + size)
        self.drop(to, to + size)
        for piece in moved:
            piece.start += to - start
            piece.loaded = False
            self._insert(piece)
            self.bytes += piece.size

    def copy(self) -> Missing:
        """Copy the pieces for a child: it misses what its parent missed when it was forked."""
        return Missing([msgspec.structs.replace(piece) for piece in self._pieces])

    def _split_range(self, start: int, end: int) -> slice:
        """Split the pieces at the bounds of a range, and return the indexes of those within it."""
        for bound in (start, end):
            index = bisect_right(self._starts, bound) - 1
            if index >= 0 and self._pieces[index].start < bound < self._pieces[index].end:
                self._insert(self._pieces[index].split(bound))
        return slice(bisect_left(self._starts, start), bisect_left(self._starts, end))

    def _insert(self, piece: Piece) -> None:
        index = bisect_left(self._starts, piece.start)
        self._pieces.insert(index, piece)
        self._starts.insert(index, piece.start)


def lazy_pieces(memory: Memory) -> Iterator[Piece]:
    """Yield what CRIU does not load in a lazy restore, split where mappings end.

    One call to the kernel cannot load pages of two mappings. Raises CheckpointMismatch for pages that
    are not in these images.
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


def complete_mappings(memory: Memory) -> Iterator[Mapping]:
    """Yield the mappings that CRIU registers with userfaultfd although they have no lazy page.

    These can be unregistered as a whole. Of any other mapping the space between pieces stays registered
    too: a mapping that is registered in part is several mappings to the kernel, and mremap(2) refuses
    to move several.
    """
    lazy_runs = iter([run for run in memory.runs if run.flags & LAZY])
    run = next(lazy_runs, None)
    for mapping in memory.mappings:
        while run is not None and run.end <= mapping.start:
            run = next(lazy_runs, None)
        if _can_be_lazy(mapping) and (run is None or run.start >= mapping.end):
            yield mapping


def _can_be_lazy(mapping: Mapping) -> bool:
    required = MAP_PRIVATE | MAP_ANONYMOUS
    return (
        mapping.flags & required == required
        and not mapping.flags & (_MAP_LOCKED | _MAP_HUGETLB)
        and not mapping.status & (VDSO | _VSYSCALL | _VVAR)
    )


class PagesFile:
    """A pages file, mapped, so that the kernel copies straight from the page cache. Threads may share it.

    It stays readable when the checkpoint is removed.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            # ctypes returns addresses of writable memory only. Nobody writes, and the mapping is private.
            self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def address(self, offset: int) -> int:
        """Return where the byte at `offset` of the file lies in the memory of this process."""
        return self._base + offset

    def is_zero(self, offset: int, size: int) -> bool:
        """Whether all of these bytes, 1 MiB at most, are zero."""
        start = ctypes.c_void_p(self.address(offset))
        return not _libc.memcmp(start, _ZEROS, ctypes.c_size_t(size))

    def read_ahead(self, offset: int, size: int) -> None:
        """Let the kernel read these bytes, which are needed soon, from the disk."""
        start = offset - offset % mmap.PAGESIZE
        length = min(size + offset - start, len(self._map) - start)
        self._map.madvise(mmap.MADV_WILLNEED, start, length)
