"""Which memory the images hold: the mappings of a process, and where in its pages file each page lies."""

from __future__ import annotations

import mmap
import os
import stat
from collections import abc
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from cria.criu.images import framing
from cria.criu.images.framing import Image
from cria.criu.messages import load
from cria.errors import CheckpointDamaged, CheckpointMismatch

PAGE = mmap.PAGESIZE  # bytes; CRIU counts in those of the host it ran on

# Source: enum in criu/include/pagemap.h.
IN_PARENT, LAZY, PRESENT = 1, 2, 4

# Source: criu/include/image.h, the bits of vma_entry.status.
REGULAR, STACK, VDSO, HEAP = 1, 1 << 1, 1 << 3, 1 << 5
FILE_PRIVATE, ANON_PRIVATE, GUARD = 1 << 6, 1 << 9, 1 << 16
_SPECIAL = STACK | VDSO | 1 << 2 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16 | 1 << 17

# Source: mmap(2).
MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_NORESERVE = 0x2, 0x20, 0x100, 0x4000
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """One mapping of a process: addresses in bytes, the rest as in vma.proto.

    `advice` are the bits of madvise(2) that last; of a file `file_id` is its entry in files.img, and
    `offset` where in it the mapping begins.
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
        """Private and anonymous, and nothing else: here, and only here, an absent page reads as zero."""
        return bool(self.status & ANON_PRIVATE) and not self.status & (_SPECIAL | FILE_PRIVATE)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Pages that follow each other: `offset` is where they lie in the pages file, None when not in it."""

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


def pids(images_dir: Path) -> list[int]:
    """The processes whose memory is in `images_dir`."""
    return sorted(int(path.stem.split("-")[1]) for path in images_dir.glob("mm-*.img"))


def read(images_dir: Path, pid: int, criu_binary: Path | None = None) -> Memory:
    """What mm-PID.img and pagemap-PID.img say. Raises CheckpointDamaged or CheckpointMissing."""
    raw = framing.first(images_dir / f"mm-{pid}.img", framing.MM)
    mappings = tuple(
        Mapping(
            start=v.start,
            end=v.end,
            prot=v.prot,
            flags=v.flags,
            status=v.status,
            advice=v.madv,
            file_id=v.shmid,
            offset=v.pgoff,
        )
        for v in load("mm", criu_binary).mm_entry.FromString(raw).vmas
    )
    pages_id, found = _pagemap(images_dir, pid, criu_binary)
    memory = Memory(pid=pid, pages_id=pages_id, mappings=mappings, runs=found)
    _check_sizes(images_dir, memory)
    return memory


def runs(directory: Path, pid: int, criu_binary: Path | None = None) -> tuple[Run, ...]:
    """What a pagemap that `write_pagemap` put into `directory` tells of."""
    return _pagemap(directory, pid, criu_binary)[1]


def write_pagemap(
    directory: Path, pid: int, pages_id: int, runs: Iterable[Run], criu_binary: Path | None = None
) -> None:
    """Put a pagemap of `runs` into `directory`: their pages must lie in the pages file in this order."""
    schema = load("pagemap", criu_binary)
    entry = schema.pagemap_entry
    wide = "nr_pages" in entry.DESCRIPTOR.fields_by_name  # since CRIU 4.1
    payloads = [schema.pagemap_head(pages_id=pages_id).SerializeToString()]
    for run in runs:
        few = min(run.pages, 0xFFFFFFFF)
        fields: dict[str, Any] = {"nr_pages": run.pages} if wide else {}
        made = entry(vaddr=run.start, compat_nr_pages=few, flags=run.flags, **fields)
        payloads.append(made.SerializeToString())
    framing.write(
        directory / pagemap_name(pid),
        framing.Image(header=framing.header(framing.PAGEMAP), entries=tuple(payloads)),
    )


def _pagemap(directory: Path, pid: int, criu_binary: Path | None) -> tuple[int, tuple[Run, ...]]:
    head, *entries = framing.read(directory / pagemap_name(pid), framing.PAGEMAP).entries
    pages_id = load("pagemap", criu_binary).pagemap_head.FromString(head).pages_id
    return pages_id, tuple(_runs(entries, criu_binary))


def pagemap_name(pid: int) -> str:
    return f"pagemap-{pid}.img"


def _runs(entries: Iterable[bytes], criu_binary: Path | None) -> Iterator[Run]:
    parse, offset = load("pagemap", criu_binary).pagemap_entry.FromString, 0
    for raw in entries:
        entry = parse(raw)
        pages = getattr(entry, "nr_pages", 0) or entry.compat_nr_pages
        # Images of before CRIU 1.8 have no flags; every page is then in the file or in a parent.
        flags = entry.flags or (IN_PARENT if entry.in_parent else PRESENT)
        present = bool(flags & PRESENT)
        yield Run(start=entry.vaddr, pages=pages, flags=flags, offset=offset if present else None)
        offset += pages * PAGE if present else 0


def _check_sizes(images_dir: Path, memory: Memory) -> None:
    told = sum(run.size for run in memory.runs if run.offset is not None)
    path = images_dir / memory.pages_file
    found = path.stat().st_size if path.exists() else 0
    if told != found:
        raise CheckpointDamaged(
            f"{path} does not hold the pages that {pagemap_name(memory.pid)} tells of",
            details=f"it has {found} bytes, the pagemap tells of {told}; pages of {PAGE} bytes",
        )


_REG = 1  # enum fd_types in criu/images/fdinfo.proto


class MappedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A regular file that mappings of the images are to be of; `mode` as of stat(2)."""

    file_id: int
    path: str
    size_bytes: int
    mode: int


def name(pid: int) -> str:
    return f"mm-{pid}.img"


def highest_id(image: Image, criu: Path | None = None) -> int:
    """The highest file ID that is taken in files.img."""
    parse = load("fdinfo", criu).file_entry.FromString
    return max((parse(payload).id for payload in image.entries), default=0)


def with_files(image: Image, files: Iterable[MappedFile], criu: Path | None = None) -> Image:
    """files.img with `files` besides. Raises CheckpointMismatch where one of their IDs is taken."""
    added = tuple(_entry(file, criu) for file in files)
    highest = highest_id(image, criu)
    if any(entry.id <= highest for entry in added):
        raise CheckpointMismatch(
            "the file for shared memory was made for other images",
            details=f"it is to have an ID of {highest} or below, which is taken",
        )
    entries = (*image.entries, *(entry.SerializeToString() for entry in added))
    return Image(header=image.header, entries=entries)


def without_files(image: Image, ids: Collection[int], criu: Path | None = None) -> Image:
    """files.img without the regular files `ids`."""
    parse = load("fdinfo", criu).file_entry.FromString
    kept = (e for e, known in ((e, parse(e)) for e in image.entries) if _stays(known, ids))
    return Image(header=image.header, entries=tuple(kept))


def map_file(
    images: Path,
    out: Path,
    pid: int,
    *,
    places: abc.Mapping[int, int],
    file_id: int,
    criu: Path | None = None,
) -> None:
    """Write to `out` the mappings of `pid`, those that begin at `places` being of the file `file_id`.

    `places` gives the offset in the file for the address of each.
    """
    entry = _read(images, pid, criu)
    for vma in entry.vmas:
        if (offset := places.get(vma.start)) is not None:
            vma.flags &= ~MAP_ANONYMOUS
            vma.status = REGULAR | FILE_PRIVATE
            vma.shmid, vma.pgoff, vma.fdflags = file_id, offset, os.O_RDONLY
    _write(out, pid, entry)


def map_nothing(images: Path, pid: int, ids: Collection[int], criu: Path | None = None) -> None:
    """Make the private mappings of the files `ids` anonymous, in place."""
    entry = _read(images, pid, criu)
    for vma in entry.vmas:
        if vma.status & FILE_PRIVATE and vma.shmid in ids:
            heap = vma.start < entry.mm_brk and vma.end > entry.mm_start_brk
            vma.flags |= MAP_ANONYMOUS
            vma.status = REGULAR | ANON_PRIVATE | (HEAP if heap else 0)
            vma.shmid = vma.pgoff = 0
            vma.ClearField("fdflags")
    _write(images, pid, entry)


def _stays(known: Any, ids: Collection[int]) -> bool:
    return known.type != _REG or known.id not in ids


def _read(images: Path, pid: int, criu: Path | None) -> Any:
    raw = framing.first(images / name(pid), framing.MM)
    return load("mm", criu).mm_entry.FromString(raw)


def _write(directory: Path, pid: int, entry: Any) -> None:
    image = Image(header=framing.header(framing.MM), entries=(entry.SerializeToString(),))
    framing.write(directory / name(pid), image)


def _entry(file: MappedFile, criu: Path | None) -> Any:
    assert stat.S_ISREG(file.mode)
    entry = load("fdinfo", criu).file_entry(type=_REG, id=file.file_id)
    entry.reg.id, entry.reg.name = file.file_id, file.path
    entry.reg.flags, entry.reg.pos = os.O_RDONLY, 0
    entry.reg.size, entry.reg.mode = file.size_bytes, file.mode
    owner = entry.reg.fown  # of SIGIO, which nobody asked for
    owner.uid = owner.euid = owner.signum = owner.pid_type = owner.pid = 0
    return entry
