"""Compress the memory of a dump, and write it into the processes of a restore."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from cria.criu.images.directory import CriuImages
from cria.criu.images.memory import MAP_GROWSDOWN, PROT_WRITE, Memory, Run
from cria.errors import CheckpointDamaged, RestoreFailed
from cria.events import OnBytes
from cria.memory import frames, zero_pages
from cria.memory.frames import FRAME_BYTES, Frames
from cria.memory.zero_pages import Piece
from cria.system.processes import write_memory

SMALLEST = (
    64 << 10
)  # bytes; shorter runs are many and hold little, and thread arenas are among them
SUFFIX = ".zst"
_MAP_HUGETLB = 0x40000  # mmap(2)

AddressRange = tuple[int, int]  # address and size


# CRIU reads pages from plain files only: its image streamer cannot be used over RPC, and to decompress a
# pages file for CRIU would need the memory twice. So the large part of the memory, nearly all, is extracted
# from CRIU's images at a dump. At a restore cria writes it straight into the processes, while CRIU holds
# them at post-restore. The rest stays in CRIU's pages files, which are compressed too, and are decompressed
# for CRIU: they are small.


def extract(images: CriuImages, extracted: CriuImages, memory: Memory, moved: OnBytes) -> None:
    """Move the large part of the memory of one process from `images` to a file of frames in `extracted`.

    What remains in the pages file of the process is compressed too. Calls `moved` with the bytes of
    each piece.
    """
    large: list[Run] = []
    remaining: list[Run] = []
    source = images.path / memory.pages_file
    with source.open("rb", buffering=0) as file:
        pages = file.fileno()
        for piece in zero_pages.split_by_mapping(memory):
            for part in zero_pages.nonzero_pieces(pages, piece):
                (large if _can_be_written(part) else remaining).append(part.run)
        frames.write(extracted.path / f"{memory.pid}{SUFFIX}", _read_runs(pages, large, moved))
        extracted.write_pagemap(memory.pid, memory.pid, large)
        frames.write(_compressed_path(source), _read_runs(pages, remaining, moved))
    images.write_pagemap(memory.pid, memory.pages_id, remaining)
    source.unlink()


def compress_shared_pages(images: Path, moved: OnBytes) -> None:
    """Compress the pages files that belong to no process: they hold memory that is shared without a file."""
    for path in sorted(images.glob("pages-*.img")):
        with path.open("rb", buffering=0) as file:
            content = _read(file.fileno(), 0, path.stat().st_size, moved)
            frames.write(_compressed_path(path), content)
        path.unlink()


def size_bytes(images: Path, extracted: Path) -> int:
    """Return the bytes of memory in a checkpoint, counted before compression."""
    size = sum(path.stat().st_size for path in images.glob("pages-*.img"))
    for path in (*images.glob(f"pages-*.img{SUFFIX}"), *extracted.glob(f"*{SUFFIX}")):
        with Frames(path) as file:
            size += file.size
    return size


def decompress_pages_files(images: Path, view: Path) -> int:
    """Decompress the pages files of `images` into the directory `view` for CRIU; return their bytes."""
    size = 0
    for path in sorted(images.glob(f"pages-*.img{SUFFIX}")):
        plain = view / path.name.removesuffix(SUFFIX)
        with Frames(path) as source, plain.open("xb") as target:
            plain.chmod(0o600)
            for number in range(len(source.starts)):
                target.writelines(source.pieces(number))
            size += source.size
    return size


def write_into(extracted: CriuImages, host_pid: Callable[[int], int]) -> int:
    """Write extracted memory into the processes that CRIU has restored and still holds.

    `host_pid` maps the PID of a process in the images to its PID on this host. All processors
    decompress. Returns the bytes written. Raises CheckpointDamaged or RestoreFailed.
    """
    from concurrent.futures import ThreadPoolExecutor  # only a compressed checkpoint needs it

    with ExitStack() as files, ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = []
        for path in sorted(extracted.path.glob(f"*{SUFFIX}")):
            pid = int(path.name.removesuffix(SUFFIX))
            runs = extracted.runs(pid)
            source = files.enter_context(Frames(path))
            if source.size != sum(run.size for run in runs):
                raise CheckpointDamaged(
                    f"{path} does not hold the memory that its pagemap describes"
                )
            target, ranges = host_pid(pid), TargetRanges(runs)
            futures += [
                pool.submit(_write_frame, source, number, target, ranges)
                for number in range(len(source.starts))
            ]
        return sum(future.result() for future in futures)


class TargetRanges:
    """Maps offsets in a file of frames to addresses in a process."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._offsets = [run.offset or 0 for run in runs]

    def of(self, offset: int, size: int) -> list[AddressRange]:
        """Return the address ranges, in order, where the `size` bytes from `offset` belong."""
        ranges: list[AddressRange] = []
        index = bisect_right(self._offsets, offset) - 1
        while size:
            run = self._runs[index]
            skipped = offset - self._offsets[index]
            length = min(size, run.size - skipped)
            ranges.append((run.start + skipped, length))
            offset, size, index = offset + length, size - length, index + 1
        return ranges


def _can_be_written(piece: Piece) -> bool:
    """Whether cria can write this memory of a restored process, and it is worth a system call.

    process_vm_writev(2) needs PROT_WRITE. Stacks and huge pages are left to CRIU, which maps them in
    ways of its own.
    """
    run, mapping = piece.run, piece.mapping
    return (
        mapping is not None
        and run.offset is not None
        and run.size >= SMALLEST
        and piece.is_plain
        and bool(mapping.prot & PROT_WRITE)
        and not mapping.flags & (MAP_GROWSDOWN | _MAP_HUGETLB)
    )


def _read_runs(pages: int, runs: Iterable[Run], moved: OnBytes) -> Iterator[bytes]:
    for run in runs:
        if run.offset is not None:
            yield from _read(pages, run.offset, run.offset + run.size, moved)


def _read(descriptor: int, begin: int, end: int, moved: OnBytes) -> Iterator[bytes]:
    while begin < end:
        data = os.pread(descriptor, min(FRAME_BYTES, end - begin), begin)
        if not data:
            raise CheckpointDamaged("a pages file is shorter than its pagemap says")
        moved(len(data))
        yield data
        begin += len(data)


def _write_frame(source: Frames, number: int, pid: int, ranges: TargetRanges) -> int:
    begin = offset = source.starts[number]
    try:
        for piece in source.pieces(number):
            write_memory(pid, piece, ranges.of(offset, len(piece)))
            offset += len(piece)
    except OSError as error:
        raise RestoreFailed(
            f"the memory of process {pid} could not be written",
            details=f"process_vm_writev: {error.strerror or error}",
        ) from error
    return offset - begin


def _compressed_path(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
