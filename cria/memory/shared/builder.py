"""Make the file that the clones of a checkpoint map, and the images of what is not in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cria.criu.images import CriuImages
from cria.criu.images.files import AddedFile
from cria.criu.images.memory import PAGE, Mapping, Memory, Run, map_file
from cria.errors import CannotShare, CheckpointDamaged
from cria.events import OnBytes
from cria.memory import zero_pages
from cria.memory.shared.selection import Selection

HUGE = 2 << 20
LARGEST_FILE = (16 << 40) - HUGE  # ext4's, with blocks of 4 KiB; others take more
_PIECE = 8 << 20


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """Where in the file a mapping lies."""

    mapping: Mapping
    offset: int


def assign_slots(mappings: Iterable[Mapping], room: int) -> tuple[tuple[Slot, ...], int]:
    """Where each mapping lies in the file, and the size of the file, which is nearly all holes.

    A mapping may grow (mremap, as realloc does), and then shows what follows in the file: so a hole of
    `room` bytes, if the largest file allows, follows each. Behind the last there always is one: past the
    end of a file a process is killed.
    """
    wanted = tuple(mappings)
    taken = sum(m.end - m.start + HUGE for m in wanted)
    gap = min(room, (LARGEST_FILE - room - taken) // max(1, len(wanted)))
    if gap < 0:
        raise CannotShare(
            "the memory of a process is more than a file can have with room for it to grow",
            details=f"{taken} bytes and a hole of {room}, of {LARGEST_FILE} that ext4 can have",
        )
    found, at = [], 0
    for mapping in wanted:
        # As far from a border of 2 MiB as in memory: what the page cache has in large pieces, a page
        # table can then map in large pieces.
        at += (mapping.start - at) % HUGE
        found.append(Slot(mapping=mapping, offset=at))
        at += mapping.end - mapping.start + gap // PAGE * PAGE
    return tuple(found), at + room // PAGE * PAGE


def build(
    images: CriuImages,
    out: CriuImages,
    known: Memory,
    choice: Selection,
    *,
    file_id: int,
    room: int,
    moved: OnBytes,
) -> AddedFile:
    """Write to `out` the file of one process, its mappings, and the pages that are still copied."""
    places, size = assign_slots(choice.mappings, room)
    offsets = {slot.mapping.start: slot.offset for slot in places}
    path = out.path / f"{known.pid}.mem"
    rest: list[Run] = []
    source = os.open(images.path / known.pages_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    target, left = _made(path), _made(out.path / known.pages_file)
    try:
        os.ftruncate(target, size)
        end = 0
        for piece in zero_pages.split_by_mapping(known):
            run, mapping = piece.run, piece.mapping
            if run.offset is None:
                rest.append(run)
            elif mapping is not None and (place := offsets.get(mapping.start)) is not None:
                copy_range(
                    source, run.offset, target, place + run.start - mapping.start, run.size, moved
                )
            else:
                copy_range(source, run.offset, left, end, run.size, moved)
                rest.append(run)
                end += run.size
        for each in (target, left):
            os.fsync(each)
    finally:
        for each in (source, target, left):
            os.close(each)
    out.write_pagemap(known.pid, known.pages_id, rest)
    mm = map_file(images.mm(known.pid), images.schema, offsets=offsets, file_id=file_id)
    out.write_mm(known.pid, mm)
    return AddedFile(file_id=file_id, path=str(path), size_bytes=size, mode=stat.S_IFREG | 0o400)


def copy_range(  # noqa: PLR0917 - as copy_file_range(2)
    source: int, begin: int, target: int, to: int, size: int, moved: OnBytes | None = None
) -> None:
    """Copy within the kernel, and where the file system can, without copying: by reference."""
    while size:
        try:
            count = os.copy_file_range(source, target, min(size, _PIECE), begin, to)
        except OSError:  # not between these file systems, or not by this kernel
            count = os.pwrite(target, os.pread(source, min(size, _PIECE), begin), to)
        if count == 0:
            raise CheckpointDamaged("a file with pages ends before its time", details=f"at {begin}")
        if moved is not None:
            moved(count)
        begin, to, size = begin + count, to + count, size - count


def _made(path: Path) -> int:
    """A new file that nobody, its owner not either, opens to write to by mistake."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
