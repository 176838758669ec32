"""Estimate how much of a process's memory is pages full of zeros, by looking at a few of them."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cria.inventory import Process
from cria.process.tree import PROC

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
    found = areas(Path(f"{proc}/{pid}/smaps").read_text(errors="replace"))
    total = sum(area.anonymous for area in found)
    zeros, looked = 0.0, 0
    # The same pages each time: an estimate that changes between two looks would seem a change.
    choice = random.Random(pid)
    with (
        Path(f"{proc}/{pid}/mem").open("rb") as memory,
        Path(f"{proc}/{pid}/pagemap").open("rb") as pagemap,
    ):
        for area in found:
            share = max(1, round(samples * area.anonymous / total))
            seen = list(_pages(area, share, choice, memory.fileno(), pagemap.fileno()))
            if seen:
                zeros += area.anonymous * seen.count(_ZEROS) / len(seen)
            looked += len(seen)
    return int(zeros), looked


def areas(smaps: str) -> list[Area]:
    """Return the mappings of /proc/PID/smaps that have anonymous pages."""
    found = []
    start = end = 0
    for line in smaps.splitlines():
        if line.startswith("Anonymous:"):
            anonymous = int(line.split()[1]) * 1024
            if anonymous:
                found.append(Area(start=start, end=end, anonymous=anonymous))
        elif not line[0].isupper():
            first, _, second = line.partition(" ")[0].partition("-")
            start, end = int(first, 16), int(second, 16)
    return found


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
