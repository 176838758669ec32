"""Zero pages are left out where that pays, and what is compressed comes back as it was."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.criu.images.memory import ANON_PRIVATE, FILE_PRIVATE, PAGE, PRESENT, Mapping, Memory, Run
from cria.errors import CheckpointDamaged
from cria.memory import frames, zero_pages
from cria.memory.compressed import TargetRanges
from cria.memory.frames import FRAME, Frames
from cria.system.processes import write_memory

BASE = 0x7F0000000000


def run(start: int, pages: int, offset: int | None) -> Run:
    return Run(start=BASE + start * PAGE, pages=pages, flags=PRESENT, offset=offset)


def mapping(start: int, end: int, status: int = ANON_PRIVATE) -> Mapping:
    return Mapping(start=BASE + start * PAGE, end=BASE + end * PAGE, prot=3, flags=2, status=status)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20)), min_size=1, max_size=30))
def test_what_is_left_holds_all_that_is_not_zero(
    tmp_path_factory: pytest.TempPathFactory, stretches: list[tuple[bool, int]]
) -> None:
    data = b"".join((b"\0" if zero else b"x") * (pages * PAGE) for zero, pages in stretches)
    path = tmp_path_factory.mktemp("pages") / "pages-1.img"
    path.write_bytes(data)
    whole = run(0, len(data) // PAGE, 0)

    with path.open("r+b", buffering=0) as file:
        left = list(zero_pages.nonzero_parts(file.fileno(), whole))
        zero_pages.compact(file.fileno(), left)

    memory, content = bytearray(len(data)), path.read_bytes()
    for piece in left:
        place = piece.start - BASE
        memory[place : place + piece.size], content = content[: piece.size], content[piece.size :]
    assert bytes(memory) == data
    assert content == b""
    gaps = [after.start - before.end for before, after in itertools.pairwise(left)]
    assert all(gap >= zero_pages.SHORTEST_GAP for gap in gaps)


def test_a_run_is_cut_where_a_mapping_ends() -> None:
    known = Memory(
        pid=1,
        pages_id=1,
        mappings=(mapping(0, 4), mapping(4, 6, FILE_PRIVATE), mapping(8, 9)),
        runs=(run(1, 9, 0),),
    )

    cut = [
        ((piece.run.start - BASE) // PAGE, piece.run.pages, piece.run.offset, piece.mapping)
        for piece in zero_pages.split_by_mapping(known)
    ]

    assert cut == [
        (1, 3, 0, known.mappings[0]),
        (4, 2, 3 * PAGE, known.mappings[1]),
        (6, 2, 5 * PAGE, None),
        (8, 1, 7 * PAGE, known.mappings[2]),
        (9, 1, 8 * PAGE, None),
    ]


def test_zeros_over_a_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "pages-1.img"
    path.write_bytes(bytes(200 * PAGE))
    known = Memory(
        pid=1,
        pages_id=1,
        mappings=(mapping(0, 100), mapping(100, 200, FILE_PRIVATE)),
        runs=(run(0, 200, 0),),
    )

    with path.open("rb") as file:
        left = list(zero_pages.without_zeros(file.fileno(), known))

    assert left == [run(100, 100, 100 * PAGE)]


@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, 3 * FRAME + 5])
def test_frames_are_read_in_any_order(tmp_path: Path, size: int) -> None:
    content = random.Random(1).randbytes(size // 2) + bytes(size - size // 2)

    frames.write(tmp_path / "f.zst", (content[at : at + 100_000] for at in range(0, size, 100_000)))

    with Frames(tmp_path / "f.zst") as opened:
        assert opened.size == size
        for number, start in reversed(list(enumerate(opened.starts))):
            assert b"".join(opened.pieces(number)) == content[start : start + FRAME]
        assert len(opened.starts) == -(-size // FRAME)


@pytest.mark.parametrize("cut", [1, 9, 12, 200])
def test_frames_that_were_cut_off_are_told(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "f.zst"
    frames.write(path, [os.urandom(1000)])
    os.truncate(path, path.stat().st_size - cut)

    with pytest.raises(CheckpointDamaged, match="cannot be decompressed"):
        Frames(path)


def test_places_go_over_the_end_of_a_run() -> None:
    places = TargetRanges([run(0, 1, 0), run(5, 2, PAGE)])

    assert places.of(100, PAGE) == [(BASE + 100, PAGE - 100), (BASE + 5 * PAGE, 100)]


def test_memory_of_another_process_is_written() -> None:
    held = (
        "import ctypes,sys; b=ctypes.create_string_buffer(100);"
        "print(ctypes.addressof(b),flush=True); sys.stdin.read(1); print(b.raw[:9].decode())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        address = int(other.stdout.readline())
        write_memory(other.pid, b"abcdefghi", [(address + 3, 6), (address, 3)])
        with pytest.raises(OSError, match="Bad address"):
            write_memory(other.pid, b"abc", [(8, 3)])
        output, _ = other.communicate("x")
    assert output == "ghiabcdef\n"
