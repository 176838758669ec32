"""The memory of a process: what it shares through files on /dev/shm."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from cria.model.inventory import Descriptor, Process, SharedFile
from cria.system.procfs import PROC

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
    files: dict[tuple[int, int], SharedFile] = {}
    for pid, link, target in _users(mapped, held, proc):
        try:
            status = os.stat(link)  # noqa: PTH116
        except (FileNotFoundError, ProcessLookupError):
            continue
        key = (status.st_dev, status.st_ino)
        files[key] = _joined(files.get(key), pid, target, status, proc)
    return tuple(sorted(files.values(), key=lambda file: (file.name, file.inode)))


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
    for mapping in mapped:
        if mapping.path.startswith(SHM):
            yield mapping.pid, _link(mapping, proc), mapping.path
    for one in held:
        if one.kind == "file" and one.target.startswith(SHM):
            yield one.pid, f"{proc}/{one.pid}/fd/{one.fd}", one.target


def _link(mapping: Mapping, proc: Path) -> str:
    """Return a path to the file of a mapping: map_files also leads to one without a name."""
    link = f"{proc}/{mapping.pid}/map_files/{mapping.range}"
    # map_files is for CAP_CHECKPOINT_RESTORE only; a user may still look at files that have a name.
    return link if os.geteuid() == 0 else f"{proc}/{mapping.pid}/root{mapping.path}"


def _joined(
    before: SharedFile | None, pid: int, target: str, status: os.stat_result, proc: Path
) -> SharedFile:
    pids = {pid} | set(before.pids if before else ())
    name = target.removesuffix(_DELETED)
    return SharedFile(
        path=_other_name(pid, status, proc) if target.endswith(_DELETED) else name,
        device=status.st_dev,
        inode=status.st_ino,
        size_bytes=status.st_size,
        allocated_bytes=status.st_blocks * 512,
        name=name,
        pids=tuple(sorted(pids)),
    )


def _other_name(pid: int, status: os.stat_result, proc: Path) -> str | None:
    """Find the name a file still has: sem_open(3) makes it under one name and links it to another."""
    if status.st_nlink == 0:
        return None
    with os.scandir(f"{proc}/{pid}/root{SHM}") as entries:
        return next((SHM + entry.name for entry in entries if entry.inode() == status.st_ino), None)


PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLES = 1000
_PRESENT = 1 << 63
_OF_A_FILE = 1 << 61  # or shared: pagemap(5)
_ZEROS = bytes(PAGE)


class Area(msgspec.Struct, frozen=True, kw_only=True):
    """One mapping that has anonymous pages: where it is and how many bytes of them it holds."""

    start: int
    end: int
    anonymous: int


def with_zeros(process: Process, proc: Path = PROC, samples: int = SAMPLES) -> Process:
    """Return the process with an estimate of its zero pages.

    Reads one page in /proc/PID/mem for each sample, only where the page map says that it is there:
    reading elsewhere would make pages. Without the right to trace the process nothing is estimated.
    """
    try:
        zeros, looked = _look(process.pid, proc, samples)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return process
    memory = msgspec.structs.replace(process.memory, zero=zeros, sampled_pages=looked)
    return msgspec.structs.replace(process, memory=memory)


def _look(pid: int, proc: Path, samples: int) -> tuple[int, int]:
    estimated = areas(Path(f"{proc}/{pid}/smaps").read_text(errors="replace"))
    total = sum(area.anonymous for area in estimated)
    zeros, looked = 0.0, 0
    # The same pages each time: an estimate that changes between two looks would seem a change.
    choice = random.Random(pid)
    with (
        Path(f"{proc}/{pid}/mem").open("rb") as memory,
        Path(f"{proc}/{pid}/pagemap").open("rb") as pagemap,
    ):
        for area in estimated:
            share = max(1, round(samples * area.anonymous / total))
            seen = list(_pages(area, share, choice, memory.fileno(), pagemap.fileno()))
            if seen:
                zeros += area.anonymous * seen.count(_ZEROS) / len(seen)
            looked += len(seen)
    return int(zeros), looked


def areas(smaps: str) -> list[Area]:
    """Return the mappings of /proc/PID/smaps that have anonymous pages."""
    listed = []
    start = end = 0
    for line in smaps.splitlines():
        if line.startswith("Anonymous:"):
            anonymous = int(line.split()[1]) * 1024
            if anonymous:
                listed.append(Area(start=start, end=end, anonymous=anonymous))
        elif not line[0].isupper():
            first, _, second = line.partition(" ")[0].partition("-")
            start, end = int(first, 16), int(second, 16)
    return listed


def _pages(
    area: Area, share: int, choice: random.Random, memory: int, pagemap: int
) -> Iterator[bytes]:
    """Yield up to `share` pages of the area that are there, from places spread at random."""
    count = (area.end - area.start) // PAGE
    # A sparse area needs more tries for the same number of pages.
    tries = min(count, share * 4 * max(1, (area.end - area.start) // area.anonymous))
    for _ in range(min(tries, share * 64)):
        page = area.start // PAGE + choice.randrange(count)
        (entry,) = struct.unpack("=Q", os.pread(pagemap, 8, page * 8).ljust(8, b"\0"))
        if entry & _PRESENT and not entry & _OF_A_FILE:
            yield os.pread(memory, PAGE, page * PAGE)
            share -= 1
            if share == 0:
                return
