"""The memory of a process: what it shares through files on /dev/shm."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from cria.inventory import Descriptor, SharedFile
from cria.process.tree import PROC

SHM = "/dev/shm/"
_DELETED = " (deleted)"
_START_BRK = 47 - 3  # proc(5) counts from 1, and its third field is the first after the name


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """One line of /proc/PID/maps with a path; `range` is as in the file (hexadecimal)."""

    pid: int
    range: str
    permissions: str
    inode: int
    path: str


def shared_files(
    mapped: Iterable[Mapping], held: Iterable[Descriptor], proc: Path = PROC
) -> tuple[SharedFile, ...]:
    """Return the files of /dev/shm that are mapped or held open, also those without a name.

    The path is the one inside the mount namespace of the process.
    """
    found: dict[tuple[int, int], SharedFile] = {}
    for pid, link, target in _users(mapped, held, proc):
        try:
            known = os.stat(link)  # noqa: PTH116
        except (FileNotFoundError, ProcessLookupError):
            continue
        key = (known.st_dev, known.st_ino)
        found[key] = _joined(found.get(key), pid, target, known, proc)
    return tuple(sorted(found.values(), key=lambda file: (file.name, file.inode)))


def mappings(pid: int, proc: Path = PROC) -> Iterator[Mapping]:
    """Yield the mappings of `pid` that have a path; none when it has ended."""
    try:
        lines = Path(f"{proc}/{pid}/maps").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return
    for line in lines:
        parts = line.split(maxsplit=5)
        if len(parts) == 6:
            yield Mapping(
                pid=pid, range=parts[0], permissions=parts[1], inode=int(parts[4]), path=parts[5]
            )


def heap(pid: int, proc: Path = PROC) -> Iterator[tuple[int, int]]:
    """Begin and end of the mappings that the heap is made of.

    They are found by where it starts: in a clone that shares its memory most of the heap is a mapping of a
    file, and not called a heap.
    """
    at = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[_START_BRK])
    for line in (proc / str(pid) / "maps").read_text(errors="replace").splitlines():
        begin, end = (int(x, 16) for x in line.split(maxsplit=1)[0].split("-"))
        if begin <= at < end:
            yield begin, end
            at = end


def _users(
    mapped: Iterable[Mapping], held: Iterable[Descriptor], proc: Path
) -> Iterator[tuple[int, str, str]]:
    for each in mapped:
        if each.path.startswith(SHM):
            yield each.pid, _link(each, proc), each.path
    for one in held:
        if one.kind == "file" and one.target.startswith(SHM):
            yield one.pid, f"{proc}/{one.pid}/fd/{one.fd}", one.target


def _link(mapping: Mapping, proc: Path) -> str:
    """Return a path to the file of a mapping: map_files also leads to one without a name."""
    link = f"{proc}/{mapping.pid}/map_files/{mapping.range}"
    # map_files is for CAP_CHECKPOINT_RESTORE only; a user may still look at files that have a name.
    return link if os.geteuid() == 0 else f"{proc}/{mapping.pid}/root{mapping.path}"


def _joined(
    before: SharedFile | None, pid: int, target: str, known: os.stat_result, proc: Path
) -> SharedFile:
    pids = {pid} | set(before.pids if before else ())
    name = target.removesuffix(_DELETED)
    return SharedFile(
        path=_other_name(pid, known, proc) if target.endswith(_DELETED) else name,
        device=known.st_dev,
        inode=known.st_ino,
        size_bytes=known.st_size,
        allocated_bytes=known.st_blocks * 512,
        name=name,
        pids=tuple(sorted(pids)),
    )


def _other_name(pid: int, known: os.stat_result, proc: Path) -> str | None:
    """Find the name a file still has: sem_open(3) makes it under one name and links it to another."""
    if known.st_nlink == 0:
        return None
    with os.scandir(f"{proc}/{pid}/root{SHM}") as entries:
        return next((SHM + entry.name for entry in entries if entry.inode() == known.st_ino), None)
