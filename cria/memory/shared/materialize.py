"""Copy memory that an engine maps from a backing store into its images: a checkpoint needs no backing store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import msgspec

from cria.criu.images.directory import CriuImages
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
from cria.memory import zero_pages
from cria.memory.shared.builder import copy_range
from cria.memory.shared.directory import is_shared_file
from cria.system import files


class SourcedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run, and where its pages lie: at `offset` in the open file `source`."""

    run: Run
    source: int
    offset: int


def shared_files(images: CriuImages) -> tuple[RegularFile, ...]:
    """Return the files in files.img that belong to a backing store."""
    return tuple(file for file in images.regular_files() if is_shared_file(file.path))


def materialize(images: CriuImages) -> None:
    """Make all private mappings of a backing store anonymous, and add their pages to the images.

    The images hold the pages that a process has written to; of any other page the process sees what the
    file holds. Raises DumpFailed where a file of the backing store is gone.
    """
    shared = shared_files(images)
    ids = {file.file_id for file in shared}
    with ExitStack() as stack:
        sources = {file.file_id: _open(file, stack) for file in shared}
        for pid in images.pids:
            memory = images.memory(pid)
            if any(_is_shared(mapping, ids) for mapping in memory.mappings):
                _materialize_process(images, memory, sources)
                images.write_mm(pid, map_anonymous(images.mm(pid), images.schema, ids))
    images.write_files(remove_files(images.files, ids))


def merge_pages(memory: Memory, pages: int, sources: dict[int, int]) -> Iterator[SourcedRun]:
    """Yield all pages of a process in order: those in its pages file, and those seen in shared files.

    `pages` is the open pages file, `sources` are the open shared files by their ID in files.img.
    """
    shared: dict[Mapping, list[Run]] = {}
    result: list[SourcedRun] = []
    for piece in zero_pages.split_by_mapping(memory):
        run = piece.run
        if piece.mapping is not None and _is_shared(piece.mapping, sources):
            shared.setdefault(piece.mapping, []).append(run)
        else:
            result.append(SourcedRun(run=run, source=pages, offset=run.offset or 0))
    for mapping in memory.mappings:
        if _is_shared(mapping, sources):
            result.extend(_merge_mapping(mapping, shared.get(mapping, []), pages, sources))
    yield from sorted(result, key=lambda sourced: sourced.run.start)


def _open(file: RegularFile, stack: ExitStack) -> int:
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _lost(file, error.strerror) from error
    stack.callback(os.close, descriptor)
    size = os.fstat(descriptor).st_size
    if size != file.size_bytes:
        raise _lost(file, f"it has {size} bytes, not {file.size_bytes}")
    return descriptor


def _lost(file: RegularFile, reason: str | None) -> DumpFailed:
    return DumpFailed(
        f"{file.path}, which holds memory that the engine shares, is gone",
        details=reason,
        remedy="restore the engine again, and keep the file as long as the engine runs",
        docs="docs/how-to/shared-memory.md",
    )


def _is_shared(mapping: Mapping, ids: Iterable[int]) -> bool:
    return bool(mapping.status & FILE_PRIVATE) and mapping.file_id in ids


def _materialize_process(images: CriuImages, memory: Memory, sources: dict[int, int]) -> None:
    path = images.path / memory.pages_file
    merged_path = path.with_suffix(".merged")
    with path.open("rb", buffering=0) as pages, merged_path.open("xb", buffering=0) as merged:
        os.fchmod(merged.fileno(), 0o600)
        runs = list(merge_pages(memory, pages.fileno(), sources))
        end = 0
        for sourced in runs:
            if sourced.run.offset is not None:
                copy_range(sourced.source, sourced.offset, merged.fileno(), end, sourced.run.size)
                end += sourced.run.size
    merged_path.replace(path)
    images.write_pagemap(memory.pid, memory.pages_id, (sourced.run for sourced in runs))


def _merge_mapping(
    mapping: Mapping, runs: list[Run], pages: int, sources: dict[int, int]
) -> Iterator[SourcedRun]:
    source, start = sources[mapping.file_id], mapping.start
    for run in runs:
        yield from _data_in_file(mapping, start, run.start, source)
        yield _sourced_run(run.start, run.end, pages, run.offset or 0)
        start = run.end
    yield from _data_in_file(mapping, start, mapping.end, source)


def _data_in_file(mapping: Mapping, start: int, end: int, source: int) -> Iterator[SourcedRun]:
    """Yield the pages that the shared file holds for these addresses.

    A hole in the file stays absent, and reads as zero: the mapping will be anonymous.
    """
    shift = mapping.offset - mapping.start
    for begin, stop, is_data in files.extents(source, end + shift, start + shift):
        if is_data:
            first = begin // PAGE * PAGE  # the blocks of a file system may be smaller than a page
            yield _sourced_run(first - shift, -(-stop // PAGE) * PAGE - shift, source, first)


def _sourced_run(start: int, end: int, source: int, offset: int) -> SourcedRun:
    pages = (end - start) // PAGE
    return SourcedRun(
        run=Run(start=start, pages=pages, flags=PRESENT | LAZY, offset=0),
        source=source,
        offset=offset,
    )
