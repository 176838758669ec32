"""Take zero pages out of images, where an absent page reads as zero: private anonymous memory only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import msgspec

from cria.criu.images import CriuImages
from cria.criu.images.memory import PAGE, Mapping, Memory, Run

READ = 4 << 20
SHORTEST_GAP = 8 * PAGE  # every gap costs CRIU a system call, which is dearer than a page or two
WORTH_IT = 0.1  # the share of zero pages from which on moving the others pays
_ZERO = bytes(PAGE)
_ONE_IN = 64


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A run, or the part of one that lies in one mapping; None where no mapping is told of."""

    run: Run
    mapping: Mapping | None

    @property
    def is_plain(self) -> bool:
        """Whether a page that is absent here reads as zero."""
        return self.mapping is not None and self.mapping.is_plain


def drop_zero_pages(images: CriuImages, known: Memory) -> int:
    """Take the zero pages of one process out of `images`; returns the bytes that this saved.

    Images with few of them, or already made lean, are left as they are.
    """
    with (images.path / known.pages_file).open("r+b", buffering=0) as file:
        if estimate_zero_share(file.fileno(), known) < WORTH_IT:
            return 0
        runs = list(without_zeros(file.fileno(), known))
        before = os.fstat(file.fileno()).st_size
        after = compact(file.fileno(), runs)
    images.write_pagemap(known.pid, known.pages_id, runs)
    return before - after


def estimate_zero_share(pages: int, known: Memory) -> float:
    """Which share of the pages can be left out, by one page of each 256 KiB."""
    seen = zero = 0
    for piece in split_by_mapping(known):
        offset = piece.run.offset
        if offset is None or not piece.is_plain:
            continue
        for at in range(offset, offset + piece.run.size, _ONE_IN * PAGE):
            seen += 1
            zero += os.pread(pages, PAGE, at) == _ZERO
    return zero / seen if seen else 0.0


def split_by_mapping(known: Memory) -> Iterator[Piece]:
    """The runs, cut where a mapping ends: CRIU joins pages of neighbours."""
    mappings = iter(known.mappings)
    mapping = next(mappings, None)
    for run in known.runs:
        at = run.start
        while at < run.end:
            while mapping is not None and mapping.end <= at:
                mapping = next(mappings, None)
            if mapping is None or mapping.start >= run.end:
                yield Piece(run=_part(run, at, run.end), mapping=None)
                break
            end = min(run.end, mapping.end if mapping.start <= at else mapping.start)
            yield Piece(run=_part(run, at, end), mapping=mapping if mapping.start <= at else None)
            at = end


def without_zeros(pages: int, known: Memory) -> Iterator[Run]:
    """All runs, those of private anonymous memory without their zero pages."""
    for piece in split_by_mapping(known):
        yield from (each.run for each in piece_without_zeros(pages, piece))


def piece_without_zeros(pages: int, piece: Piece) -> Iterator[Piece]:
    """What is left of one piece."""
    if not piece.is_plain:
        yield piece
        return
    for run in nonzero_parts(pages, piece.run):
        yield Piece(run=run, mapping=piece.mapping)


def nonzero_parts(pages: int, run: Run) -> Iterator[Run]:
    """What is left of `run` without stretches of at least 8 zero pages."""
    if run.offset is None:
        yield run
        return
    begin = end = 0  # of the stretch that is kept, in bytes from the start of the run
    for first in range(0, run.size, READ):
        data = os.pread(pages, min(READ, run.size - first), run.offset + first)
        for at in range(0, len(data), PAGE):
            # Most pages are told by their first byte, which is quicker than asking for all of them.
            if data[at] or not data.startswith(_ZERO, at):
                if first + at - end >= SHORTEST_GAP:
                    if end > begin:
                        yield _part(run, run.start + begin, run.start + end)
                    begin = first + at
                end = first + at + PAGE
    # A short stretch of zeros at the end stays: it costs less than it would save.
    if run.size - end < SHORTEST_GAP:
        end = run.size
    if end > begin:
        yield _part(run, run.start + begin, run.start + end)


def compact(pages: int, runs: Iterable[Run]) -> int:
    """Move the pages of `runs` together, in order, and cut the file after them; returns its new size."""
    to = 0
    for run in runs:
        if run.offset is None:
            continue
        if run.offset == to:
            to += run.size
            continue
        for at in range(run.offset, run.offset + run.size, READ):
            data = os.pread(pages, min(READ, run.offset + run.size - at), at)
            to += os.pwrite(pages, data, to)
    os.ftruncate(pages, to)
    return to


def _part(run: Run, start: int, end: int) -> Run:
    if (start, end) == (run.start, run.end):
        return run
    offset = None if run.offset is None else run.offset + start - run.start
    return Run(start=start, pages=(end - start) // PAGE, flags=run.flags, offset=offset)
