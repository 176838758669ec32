"""Build the file that clones map for one process, and the images of the pages that are still copied."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from cria.criu.images.directory import CriuImages
from cria.criu.images.files import AddedFile
from cria.criu.images.memory import PAGE, Mapping, Memory, Run, map_file
from cria.errors import CannotShare, CheckpointDamaged
from cria.events import OnBytes
from cria.memory import zero_pages

HUGE_PAGE = 2 << 20
LARGEST_FILE = (16 << 40) - HUGE_PAGE  # bytes; ext4 with blocks of 4 KiB, others allow more
_COPY_BYTES = 8 << 20


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping and where it lies in the file."""

    mapping: Mapping
    offset: int


# Shared memory has a file of its own, and is not mapped from the checkpoint's pages file. A mapping that is
# cut short and grows again (mremap(2), as realloc does) shows what follows in the file; past the end of the
# file the kernel kills the process with SIGBUS. So a hole follows each mapping, the last one too.
def assign_slots(mappings: Iterable[Mapping], growth: int) -> tuple[tuple[Slot, ...], int]:
    """Assign each mapping its place in the file; return these and the size of the file.

    After each mapping there is a hole of `growth` bytes, or less where the largest file would not be
    large enough; nearly all of the file is holes. Raises CannotShare where the mappings do not fit.
    """
    wanted = tuple(mappings)
    mapped_bytes = sum(mapping.end - mapping.start + HUGE_PAGE for mapping in wanted)
    hole = min(growth, (LARGEST_FILE - growth - mapped_bytes) // max(1, len(wanted)))
    if hole < 0:
        raise CannotShare(
            "the memory of a process does not fit into one file with room for it to grow",
            details=f"{mapped_bytes} bytes and a hole of {growth}; a file on ext4 has {LARGEST_FILE} at most",
        )
    slots, offset = [], 0
    for mapping in wanted:
        # The same distance from a multiple of 2 MiB as in memory, so that what the page cache holds as a
        # huge page can be mapped as one.
        offset += (mapping.start - offset) % HUGE_PAGE
        slots.append(Slot(mapping=mapping, offset=offset))
        offset += mapping.end - mapping.start + hole // PAGE * PAGE
    return tuple(slots), offset + growth // PAGE * PAGE


def build(
    images: CriuImages,
    target: CriuImages,
    memory: Memory,
    mappings: Sequence[Mapping],
    *,
    file_id: int,
    growth: int,
    moved: OnBytes,
) -> AddedFile:
    """Write to `target` the file of one process with `mappings`, and images that map it.

    The images hold the pages of all other mappings. Returns the file, to be added to files.img with the
    ID `file_id`. For `growth` see assign_slots. Calls `moved` with the bytes of each copy.
    """
    slots, size = assign_slots(mappings, growth)
    offsets = {slot.mapping.start: slot.offset for slot in slots}
    path = target.path / f"{memory.pid}.mem"
    copied_runs: list[Run] = []
    pages = os.open(images.path / memory.pages_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    shared, copied = _create(path), _create(target.path / memory.pages_file)
    try:
        os.ftruncate(shared, size)
        end = 0
        for piece in zero_pages.split_by_mapping(memory):
            run, mapping = piece.run, piece.mapping
            if run.offset is None:
                copied_runs.append(run)
            elif mapping is not None and (offset := offsets.get(mapping.start)) is not None:
                offset += run.start - mapping.start
                copy_range(pages, run.offset, shared, offset, run.size, moved)
            else:
                copy_range(pages, run.offset, copied, end, run.size, moved)
                copied_runs.append(run)
                end += run.size
        for descriptor in (shared, copied):
            os.fsync(descriptor)
    finally:
        for descriptor in (pages, shared, copied):
            os.close(descriptor)
    target.write_pagemap(memory.pid, memory.pages_id, copied_runs)
    mm = map_file(images.mm(memory.pid), images.schema, offsets=offsets, file_id=file_id)
    target.write_mm(memory.pid, mm)
    return AddedFile(file_id=file_id, path=str(path), size_bytes=size, mode=stat.S_IFREG | 0o400)


def copy_range(  # noqa: PLR0917 - as copy_file_range(2)
    source: int, begin: int, target: int, to: int, size: int, moved: OnBytes | None = None
) -> None:
    """Copy `size` bytes between two open files within the kernel, by reference where the file system can.

    Raises CheckpointDamaged where the source is too short.
    """
    while size:
        try:
            count = os.copy_file_range(source, target, min(size, _COPY_BYTES), begin, to)
        except OSError:  # not between these file systems, or not with this kernel
            count = os.pwrite(target, os.pread(source, min(size, _COPY_BYTES), begin), to)
        if count == 0:
            raise CheckpointDamaged("a file with pages is too short", details=f"it ends at {begin}")
        if moved is not None:
            moved(count)
        begin, to, size = begin + count, to + count, size - count


def _create(path: Path) -> int:
    """Create a file that nobody, not even its owner, can open for writing by mistake."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
