"""Zero pages are dropped from private anonymous memory, and everything else stays."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.criu.images.memory import ANON_PRIVATE, FILE_PRIVATE, PAGE, PRESENT, Mapping, Memory, Run
from cria.memory import zero_pages

START = 0x7F0000000000


def run(first: int, pages: int, offset: int | None) -> Run:
    return Run(start=START + first * PAGE, pages=pages, flags=PRESENT, offset=offset)


def mapping(first: int, end: int, status: int = ANON_PRIVATE) -> Mapping:
    return Mapping(
        start=START + first * PAGE, end=START + end * PAGE, prot=3, flags=2, status=status
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20)), min_size=1, max_size=30))
def test_every_page_that_is_not_zero_is_kept(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[tuple[bool, int]]
) -> None:
    data = b"".join((b"\0" if zero else b"x") * (pages * PAGE) for zero, pages in sequences)
    path = tmp_path_factory.mktemp("pages") / "pages-1.img"
    path.write_bytes(data)
    whole = run(0, len(data) // PAGE, 0)

    with path.open("r+b", buffering=0) as file:
        kept = list(zero_pages.nonzero_parts(file.fileno(), whole))
        zero_pages.compact(file.fileno(), kept)

    memory, content = bytearray(len(data)), path.read_bytes()
    for part in kept:
        offset = part.start - START
        memory[offset : offset + part.size], content = content[: part.size], content[part.size :]
    assert bytes(memory) == data
    assert content == b""
    gaps = [after.start - before.end for before, after in itertools.pairwise(kept)]
    assert all(gap >= zero_pages.SHORTEST_GAP for gap in gaps)


def test_a_run_is_split_where_a_mapping_begins_or_ends() -> None:
    process = Memory(
        pid=1,
        pages_id=1,
        mappings=(mapping(0, 4), mapping(4, 6, FILE_PRIVATE), mapping(8, 9)),
        runs=(run(1, 9, 0),),
    )

    pieces = [
        ((piece.run.start - START) // PAGE, piece.run.pages, piece.run.offset, piece.mapping)
        for piece in zero_pages.split_by_mapping(process)
    ]

    assert pieces == [
        (1, 3, 0, process.mappings[0]),
        (4, 2, 3 * PAGE, process.mappings[1]),
        (6, 2, 5 * PAGE, None),
        (8, 1, 7 * PAGE, process.mappings[2]),
        (9, 1, 8 * PAGE, None),
    ]


def test_zero_pages_of_a_mapped_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "pages-1.img"
    path.write_bytes(bytes(200 * PAGE))
    process = Memory(
        pid=1,
        pages_id=1,
        mappings=(mapping(0, 100), mapping(100, 200, FILE_PRIVATE)),
        runs=(run(0, 200, 0),),
    )

    with path.open("rb") as file:
        kept = list(zero_pages.nonzero_runs(file.fileno(), process))

    assert kept == [run(100, 100, 100 * PAGE)]
