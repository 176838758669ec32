"""The memory in the images: the mappings of a process, and where in its pages file each page lies."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Mapping as Map
from pathlib import Path

import msgspec

from cria.criu.images import framing
from cria.criu.images.framing import Image
from cria.criu.images.schema import MmEntry, Schema
from cria.errors import CheckpointDamaged

PAGE = mmap.PAGESIZE  # bytes; CRIU counts in pages of the host of the dump

# Source: PE_PARENT, PE_LAZY and PE_PRESENT in criu/include/pagemap.h.
IN_PARENT, LAZY, PRESENT = 1, 2, 4

# The bits of vma_entry.status. Source: VMA_AREA_* and VMA_* in criu/include/image.h.
REGULAR, STACK, VSYSCALL, VDSO, HEAP = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 5
FILE_PRIVATE, ANON_PRIVATE = 1 << 6, 1 << 9
VVAR, AIO_RING, SHADOW_STACK, GUARD, UPROBES = 1 << 12, 1 << 13, 1 << 15, 1 << 16, 1 << 17
_SPECIAL = STACK | VSYSCALL | VDSO | VVAR | AIO_RING | SHADOW_STACK | GUARD | UPROBES

# Source: mmap(2).
MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_NORESERVE = 0x2, 0x20, 0x100, 0x4000
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """One mapping of a process: addresses in bytes, the rest as in images/vma.proto.

    `advice` has the lasting advice of madvise(2) as bits. A mapping of a file has the ID of the file in
    files.img, and the `offset` in bytes at which the mapping begins in the file.
    """

    start: int
    end: int
    prot: int
    flags: int
    status: int
    advice: int = 0
    file_id: int = 0
    offset: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the mapping is private, anonymous and nothing else: only then an absent page reads as zero."""
        return bool(self.status & ANON_PRIVATE) and not self.status & (_SPECIAL | FILE_PRIVATE)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive pages: `start` is their address, `offset` where they are in the pages file, if they are."""

    start: int
    pages: int
    flags: int
    offset: int | None

    @property
    def size(self) -> int:
        return self.pages * PAGE

    @property
    def end(self) -> int:
        return self.start + self.size


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of one process: its mappings and its runs, both by address."""

    pid: int
    pages_id: int
    mappings: tuple[Mapping, ...]
    runs: tuple[Run, ...]

    @property
    def pages_file(self) -> str:
        return f"pages-{self.pages_id}.img"


def mm_name(pid: int) -> str:
    """Return the name of the image with the mappings of a process."""
    return f"mm-{pid}.img"


def pagemap_name(pid: int) -> str:
    """Return the name of the image that says which pages of a process are stored."""
    return f"pagemap-{pid}.img"


def mappings(image: Image, schema: Schema) -> tuple[Mapping, ...]:
    """Read the mappings of an mm image, by address."""
    return tuple(
        Mapping(
            start=vma.start,
            end=vma.end,
            prot=vma.prot,
            flags=vma.flags,
            status=vma.status,
            advice=vma.madv,
            file_id=vma.shmid,
            offset=vma.pgoff,
        )
        for vma in _mm(image, schema).vmas
    )


def pagemap(image: Image, schema: Schema) -> tuple[int, tuple[Run, ...]]:
    """Read a pagemap: the number of its pages file, and the runs by address."""
    head, *entries = image.entries
    return schema.pagemap_head.FromString(head).pages_id, tuple(_runs(entries, schema))


def _runs(entries: Iterable[bytes], schema: Schema) -> Iterator[Run]:
    decode, offset = schema.pagemap_entry.FromString, 0
    for payload in entries:
        entry = decode(payload)
        # The same defaults as init_compat_pagemap_entry in criu/pagemap.c: images of old CRIUs have no
        # flags, and those of before CRIU 4.2 (commit afb2e6c3f) no nr_pages.
        pages = getattr(entry, "nr_pages", 0) or entry.compat_nr_pages
        flags = entry.flags or (IN_PARENT if entry.in_parent else PRESENT)
        present = bool(flags & PRESENT)
        yield Run(start=entry.vaddr, pages=pages, flags=flags, offset=offset if present else None)
        offset += pages * PAGE if present else 0


def make_pagemap(pages_id: int, runs: Iterable[Run], schema: Schema) -> Image:
    """Make a pagemap of `runs`, whose pages must lie in the pages file in this order."""
    entry = schema.pagemap_entry
    has_nr_pages = "nr_pages" in entry.DESCRIPTOR.fields_by_name
    payloads = [schema.pagemap_head(pages_id=pages_id).SerializeToString()]
    for run in runs:
        message = entry(
            vaddr=run.start, compat_nr_pages=min(run.pages, 0xFFFFFFFF), flags=run.flags
        )
        if has_nr_pages:
            message.nr_pages = run.pages
        payloads.append(message.SerializeToString())
    return Image(header=framing.header(framing.PAGEMAP), entries=tuple(payloads))


def check_pages_file(memory: Memory, directory: Path) -> None:
    """Raise CheckpointDamaged where the pages file has not the size that the pagemap says."""
    expected = sum(run.size for run in memory.runs if run.offset is not None)
    path = directory / memory.pages_file
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise CheckpointDamaged(
            f"{path} does not hold the pages that {pagemap_name(memory.pid)} tells of",
            details=f"it has {size} bytes, the pagemap tells of {expected}; pages of {PAGE} bytes",
        )


def map_file(image: Image, schema: Schema, *, offsets: Map[int, int], file_id: int) -> Image:
    """Make mappings of an mm image private mappings of the file `file_id`.

    `offsets` has, for the address at which such a mapping begins, the offset in the file in bytes.
    """
    entry = _mm(image, schema)
    for vma in entry.vmas:
        if (offset := offsets.get(vma.start)) is not None:
            vma.flags &= ~MAP_ANONYMOUS
            vma.status = REGULAR | FILE_PRIVATE
            vma.shmid, vma.pgoff, vma.fdflags = file_id, offset, os.O_RDONLY
    return _with_entry(image, entry)


def map_anonymous(image: Image, schema: Schema, ids: Collection[int]) -> Image:
    """Make the private mappings of the files `ids` in an mm image anonymous."""
    entry = _mm(image, schema)
    for vma in entry.vmas:
        if vma.status & FILE_PRIVATE and vma.shmid in ids:
            heap = vma.start < entry.mm_brk and vma.end > entry.mm_start_brk
            vma.flags |= MAP_ANONYMOUS
            vma.status = REGULAR | ANON_PRIVATE | (HEAP if heap else 0)
            vma.shmid = vma.pgoff = 0
            vma.ClearField("fdflags")
    return _with_entry(image, entry)


def _mm(image: Image, schema: Schema) -> MmEntry:
    return schema.mm_entry.FromString(image.entries[0])


def _with_entry(image: Image, entry: MmEntry) -> Image:
    return Image(header=image.header, entries=(entry.SerializeToString(),))
