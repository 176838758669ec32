"""Put memory that an engine shared back into its images: a checkpoint never needs the files for sharing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import msgspec

from cria.criu.images import CriuImages
from cria.criu.images.files import RegularFile, remove_files
from cria.criu.images.memory import (
    FILE_PRIVATE,
    LAZY,
    PAGE,
    PRESENT,
    Mapping,
    Memory,
    Run,
    map_anonymous,
)
from cria.errors import DumpFailed
from cria.events import OnBytes
from cria.memory import zero_pages
from cria.memory.shared.builder import copy_range
from cria.memory.shared.directory import is_shared_file
from cria.system import files as sparse


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Pages that follow each other, and where they lie in the open file `source`."""

    run: Run
    source: int
    offset: int


def shared_files(images: CriuImages) -> tuple[RegularFile, ...]:
    """Those of the files in files.img that were made for sharing."""
    return tuple(f for f in images.regular_files() if is_shared_file(f.path))


def materialize(images: CriuImages, moved: OnBytes | None = None) -> None:
    """Make all private mappings of files that were made for sharing anonymous again, with their pages.

    A process has, of a page that it wrote to, its own in the images, and sees of any other what the file
    holds: the images then tell the same without the file.
    """
    shared = shared_files(images)
    ids = {file.file_id for file in shared}
    with ExitStack() as opened:
        sources = {file.file_id: _opened(file, opened) for file in shared}
        for pid in images.pids:
            known = images.memory(pid)
            if any(_is_shared(mapping, ids) for mapping in known.mappings):
                _fold(images, known, sources, moved)
                images.write_mm(pid, map_anonymous(images.mm(pid), images.schema, ids))
    images.write_files(remove_files(images.files, ids))


def _opened(file: RegularFile, opened: ExitStack) -> int:
    try:
        found = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _lost(file, error.strerror) from error
    opened.callback(os.close, found)
    size = os.fstat(found).st_size
    if size != file.size_bytes:
        raise _lost(file, f"it has {size} bytes, not {file.size_bytes}")
    return found


def _lost(file: RegularFile, why: str | None) -> DumpFailed:
    return DumpFailed(
        f"{file.path}, in which the engine has memory that it shares, is not there any more",
        details=why,
        remedy="restore the engine anew, and let the file be for as long as it runs",
        docs="docs/how-to/shared-memory.md",
    )


def _is_shared(mapping: Mapping, ids: Iterable[int]) -> bool:
    return bool(mapping.status & FILE_PRIVATE) and mapping.file_id in ids


def _fold(
    images: CriuImages, known: Memory, sources: dict[int, int], moved: OnBytes | None
) -> None:
    path = images.path / known.pages_file
    fresh = path.with_suffix(".folded")
    with path.open("rb", buffering=0) as old, fresh.open("xb", buffering=0) as new:
        os.fchmod(new.fileno(), 0o600)
        pieces = list(merge_pages(known, old.fileno(), sources))
        end = 0
        for piece in pieces:
            if piece.run.offset is not None:
                copy_range(piece.source, piece.offset, new.fileno(), end, piece.run.size, moved)
                end += piece.run.size
    fresh.replace(path)
    images.write_pagemap(known.pid, known.pages_id, (p.run for p in pieces))


def merge_pages(known: Memory, own: int, sources: dict[int, int]) -> Iterator[Piece]:
    """The pages of a process in order: its `own`, and between them those that it sees in a shared file."""
    runs: dict[Mapping, list[Run]] = {}
    others: list[Piece] = []
    for each in zero_pages.split_by_mapping(known):
        if each.mapping is not None and _is_shared(each.mapping, sources):
            runs.setdefault(each.mapping, []).append(each.run)
        else:
            others.append(Piece(run=each.run, source=own, offset=each.run.offset or 0))
    for mapping in known.mappings:
        if _is_shared(mapping, sources):
            others.extend(_of_mapping(mapping, runs.get(mapping, []), own, sources))
    yield from sorted(others, key=lambda piece: piece.run.start)


def _of_mapping(
    mapping: Mapping, runs: list[Run], own: int, sources: dict[int, int]
) -> Iterator[Piece]:
    source, at = sources[mapping.file_id], mapping.start
    for run in runs:
        yield from _seen(mapping, at, run.start, source)
        yield _piece(run.start, run.end, own, run.offset or 0)
        at = run.end
    yield from _seen(mapping, at, mapping.end, source)


def _seen(mapping: Mapping, begin: int, end: int, source: int) -> Iterator[Piece]:
    """What the file holds of these addresses; where it has a hole a page reads as zero, and stays absent."""
    away = mapping.offset - mapping.start
    for start, stop, is_data in sparse.extents(source, end + away, begin + away):
        if is_data:
            first = start // PAGE * PAGE  # blocks may be smaller
            yield _piece(first - away, -(-stop // PAGE) * PAGE - away, source, first)


def _piece(start: int, end: int, source: int, offset: int) -> Piece:
    pages = (end - start) // PAGE
    return Piece(
        run=Run(start=start, pages=pages, flags=PRESENT | LAZY, offset=0),
        source=source,
        offset=offset,
    )
