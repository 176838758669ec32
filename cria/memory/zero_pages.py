"""Drop zero pages from the images of a dump."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import msgspec

from cria.criu.images.directory import CriuImages
from cria.criu.images.memory import PAGE, Mapping, Memory, Run

READ_BYTES = 4 << 20
SHORTEST_GAP = 8 * PAGE  # each gap costs CRIU a system call, which takes longer than a page or two
WORTH_DROPPING = 0.1  # the share of zero pages from which on it pays to move the other pages
_ZERO_PAGE = bytes(PAGE)
_SAMPLE_PAGES = 64  # one page in so many is looked at


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A run, or the part of a run that lies in one mapping; `mapping` is None outside all mappings."""

    run: Run
    mapping: Mapping | None

    @property
    def is_plain(self) -> bool:
        """Whether an absent page reads as zero here: only private anonymous memory does so."""
        return self.mapping is not None and self.mapping.is_plain


# This runs when the engine goes on already, on files that CRIU has written: while the engine is frozen its
# clients would wait for it. A quiesced engine has freed its KV cache, so there is often little to drop.
def drop_zero_pages(images: CriuImages, memory: Memory) -> int:
    """Drop the zero pages of one process from `images`; return the bytes that this saves.

    Images that have few zero pages are not changed.
    """
    with (images.path / memory.pages_file).open("r+b", buffering=0) as file:
        pages = file.fileno()
        if estimate_zero_share(pages, memory) < WORTH_DROPPING:
            return 0
        runs = list(nonzero_runs(pages, memory))
        before = os.fstat(pages).st_size
        after = compact(pages, runs)
    images.write_pagemap(memory.pid, memory.pages_id, runs)
    return before - after


def estimate_zero_share(pages: int, memory: Memory) -> float:
    """Estimate from samples, one page in each 256 KiB, which share of the pages can be dropped.

    `pages` is the descriptor of the pages file.
    """
    samples = zeros = 0
    for piece in split_by_mapping(memory):
        offset = piece.run.offset
        if offset is None or not piece.is_plain:
            continue
        for position in range(offset, offset + piece.run.size, _SAMPLE_PAGES * PAGE):
            samples += 1
            zeros += os.pread(pages, PAGE, position) == _ZERO_PAGE
    return zeros / samples if samples else 0.0


def split_by_mapping(memory: Memory) -> Iterator[Piece]:
    """Yield all runs, split where a mapping begins or ends: CRIU joins the pages of neighbours."""
    mappings = iter(memory.mappings)
    mapping = next(mappings, None)
    for run in memory.runs:
        start = run.start
        while start < run.end:
            while mapping is not None and mapping.end <= start:
                mapping = next(mappings, None)
            if mapping is None or mapping.start >= run.end:
                yield Piece(run=_part(run, start, run.end), mapping=None)
                break
            is_inside = mapping.start <= start
            end = min(run.end, mapping.end if is_inside else mapping.start)
            yield Piece(run=_part(run, start, end), mapping=mapping if is_inside else None)
            start = end


def nonzero_runs(pages: int, memory: Memory) -> Iterator[Run]:
    """Yield all runs, those of private anonymous memory without their zero pages."""
    for piece in split_by_mapping(memory):
        yield from (part.run for part in nonzero_pieces(pages, piece))


def nonzero_pieces(pages: int, piece: Piece) -> Iterator[Piece]:
    """Yield what is left of a piece without its zero pages; a piece that is not plain stays whole."""
    if not piece.is_plain:
        yield piece
        return
    for run in nonzero_parts(pages, piece.run):
        yield Piece(run=run, mapping=piece.mapping)


def nonzero_parts(pages: int, run: Run) -> Iterator[Run]:
    """Yield what is left of `run` without each sequence of at least 8 zero pages."""
    if run.offset is None:
        yield run
        return
    begin = end = 0  # of the part that is kept, in bytes from the start of the run
    for chunk in range(0, run.size, READ_BYTES):
        data = os.pread(pages, min(READ_BYTES, run.size - chunk), run.offset + chunk)
        for position in range(0, len(data), PAGE):
            # The first byte shows of most pages that they are not zero, and is quicker to look at.
            if data[position] or not data.startswith(_ZERO_PAGE, position):
                if chunk + position - end >= SHORTEST_GAP:
                    if end > begin:
                        yield _part(run, run.start + begin, run.start + end)
                    begin = chunk + position
                end = chunk + position + PAGE
    if run.size - end < SHORTEST_GAP:
        end = run.size  # few zero pages at the end are kept, as they are between others
    if end > begin:
        yield _part(run, run.start + begin, run.start + end)


def compact(pages: int, runs: Iterable[Run]) -> int:
    """Move the pages of `runs` together, in their order, and truncate the file; return its new size."""
    end = 0
    for run in runs:
        if run.offset is None:
            continue
        if run.offset == end:
            end += run.size
            continue
        for position in range(run.offset, run.offset + run.size, READ_BYTES):
            data = os.pread(pages, min(READ_BYTES, run.offset + run.size - position), position)
            end += os.pwrite(pages, data, end)
    os.ftruncate(pages, end)
    return end


def _part(run: Run, start: int, end: int) -> Run:
    if (start, end) == (run.start, run.end):
        return run
    offset = None if run.offset is None else run.offset + start - run.start
    return Run(start=start, pages=(end - start) // PAGE, flags=run.flags, offset=offset)
