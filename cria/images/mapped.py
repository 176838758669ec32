"""Mappings in the images turned from anonymous memory into private mappings of a file, and back."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cria.errors import CheckpointMismatch
from cria.images import framing
from cria.images.bindings import load
from cria.images.framing import Image
from cria.images.memory import (
    ANON_PRIVATE,
    FILE_PRIVATE,
    HEAP,
    MAP_ANONYMOUS,
    REGULAR,
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
    places: Mapping[int, int],
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
