"""Memory that a checkpoint holds compressed: taken out of CRIU's images, put back into restored processes.

CRIU can only copy pages from a plain file. So what is large and plain, nearly all, is kept aside in
frames, and written straight into the processes while CRIU holds them: it is never on a disk as a whole
and never in memory twice. The rest is compressed as well, and given to CRIU as the file that it expects.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from cria.criu.images import CriuImages
from cria.criu.images.memory import MAP_GROWSDOWN, PROT_WRITE, Memory, Run
from cria.errors import CheckpointDamaged, RestoreFailed
from cria.events import OnBytes
from cria.memory import frames, zero_pages
from cria.memory.frames import FRAME, Frames
from cria.memory.zero_pages import Piece
from cria.system.processes import write_memory

SMALLEST = 64 << 10  # the shorter runs are many and hold little; thread areas are among them
MAP_HUGETLB = 0x40000
SUFFIX = ".zst"

Place = tuple[int, int]  # address and size


# At the dump -----------------------------------------------------------------------------------


def extract(images: CriuImages, aside: CriuImages, known: Memory, moved: OnBytes) -> None:
    """Move the large plain memory of one process from `images` to frames in the directory `aside`."""
    ours: list[Run] = []
    rest: list[Run] = []
    source = images.path / known.pages_file
    with source.open("rb", buffering=0) as file:
        pages = file.fileno()
        for piece in zero_pages.split_by_mapping(known):
            for left in zero_pages.piece_without_zeros(pages, piece):
                (ours if _can_be_ours(left) else rest).append(left.run)
        frames.write(_frames_of(aside.path, known.pid), _content(pages, ours, moved))
        aside.write_pagemap(known.pid, known.pid, ours)
        frames.write(_compressed(source), _content(pages, rest, moved))
    images.write_pagemap(known.pid, known.pages_id, rest)
    source.unlink()


def compress_shared_pages(images: Path, moved: OnBytes) -> None:
    """Compress the pages files that belong to no process: memory shared without a file."""
    for path in sorted(images.glob("pages-*.img")):
        with path.open("rb", buffering=0) as file:
            frames.write(_compressed(path), _read(file.fileno(), 0, path.stat().st_size, moved))
        path.unlink()


def _can_be_ours(piece: Piece) -> bool:
    """Whether a process that CRIU holds after its restore can be written to there."""
    run, mapping = piece.run, piece.mapping
    return (
        mapping is not None
        and run.offset is not None
        and run.size >= SMALLEST
        and piece.is_plain
        and bool(mapping.prot & PROT_WRITE)
        and not mapping.flags & (MAP_GROWSDOWN | MAP_HUGETLB)
    )


def _content(pages: int, runs: Iterable[Run], moved: OnBytes) -> Iterator[bytes]:
    for run in runs:
        if run.offset is not None:
            yield from _read(pages, run.offset, run.offset + run.size, moved)


def _read(file: int, begin: int, end: int, moved: OnBytes) -> Iterator[bytes]:
    while begin < end:
        data = os.pread(file, min(FRAME, end - begin), begin)
        if not data:
            raise CheckpointDamaged("a pages file ends before its time")
        moved(len(data))
        yield data
        begin += len(data)


# At the restore --------------------------------------------------------------------------------


def size_bytes(images: Path, aside: Path) -> int:
    """The bytes of memory in a checkpoint, compressed or not."""
    total = sum(path.stat().st_size for path in images.glob("pages-*.img"))
    for path in (*images.glob(f"pages-*.img{SUFFIX}"), *aside.glob(f"*{SUFFIX}")):
        with Frames(path) as opened:
            total += opened.size
    return total


def decompress_pages_files(images: Path, view: Path) -> int:
    """Put the compressed pages files of `images` into `view` as CRIU expects them; returns their bytes."""
    total = 0
    for path in sorted(images.glob(f"pages-*.img{SUFFIX}")):
        plain = view / path.name.removesuffix(SUFFIX)
        with Frames(path) as opened, plain.open("xb") as file:
            plain.chmod(0o600)
            for number in range(len(opened.starts)):
                file.writelines(opened.pieces(number))
            total += opened.size
    return total


def write_into(aside: CriuImages, host_pid: Callable[[int], int]) -> int:
    """Write the memory in `aside` into the processes that CRIU has restored and still holds.

    `host_pid` tells the PID here of a process of the images. Every processor decompresses; returns the
    bytes written. Raises CheckpointDamaged or RestoreFailed.
    """
    from concurrent.futures import ThreadPoolExecutor  # a plain restore needs none

    with ExitStack() as opened, ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        work = []
        for path in sorted(aside.path.glob(f"*{SUFFIX}")):
            pid = int(path.name.removesuffix(SUFFIX))
            runs = aside.runs(pid)
            source = opened.enter_context(Frames(path))
            if source.size != sum(run.size for run in runs):
                raise CheckpointDamaged(
                    f"{path} does not hold the memory that its pagemap tells of"
                )
            target, where = host_pid(pid), TargetRanges(runs)
            work += [
                pool.submit(_put_frame, source, number, target, where)
                for number in range(len(source.starts))
            ]
        return sum(done.result() for done in work)


class TargetRanges:
    """Where in a process the bytes of its frames belong."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._offsets = [run.offset or 0 for run in runs]

    def of(self, offset: int, size: int) -> list[Place]:
        """The places, in order, of the `size` bytes from `offset`."""
        found: list[Place] = []
        number = bisect_right(self._offsets, offset) - 1
        while size:
            run = self._runs[number]
            skipped = offset - self._offsets[number]
            here = min(size, run.size - skipped)
            found.append((run.start + skipped, here))
            offset, size, number = offset + here, size - here, number + 1
        return found


def _put_frame(source: Frames, number: int, pid: int, where: TargetRanges) -> int:
    begin = at = source.starts[number]
    try:
        for piece in source.pieces(number):
            write_memory(pid, piece, where.of(at, len(piece)))
            at += len(piece)
    except OSError as error:
        raise RestoreFailed(
            f"the memory of process {pid} could not be put back",
            details=f"process_vm_writev: {error.strerror or error}",
        ) from error
    return at - begin


def _frames_of(aside: Path, pid: int) -> Path:
    return aside / f"{pid}{SUFFIX}"


def _compressed(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
