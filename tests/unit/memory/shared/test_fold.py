"""Shared memory taken back into images: a process's own pages first, else what the file holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.criu.images import memory
from cria.criu.images.memory import PAGE, PRESENT, Mapping, Memory, Run
from cria.memory.shared.materialize import merge_pages

AT, FAR = 0x7F0000000000, 1 << 30
SHARED = Mapping(
    start=AT,
    end=AT + 16 * PAGE,
    prot=3,
    flags=memory.MAP_PRIVATE,
    status=memory.REGULAR | memory.FILE_PRIVATE,
    file_id=9,
    offset=FAR,
)


@contextmanager
def opened(path: Path, pages: dict[int, bytes], size: int) -> Iterator[int]:
    """A sparse file with a page at each of some numbers."""
    with path.open("w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), size)
        for number, byte in pages.items():
            os.pwrite(file.fileno(), byte * PAGE, number * PAGE)
        yield file.fileno()


def content(known: Memory, own: int, shared: int) -> dict[int, bytes]:
    """The first byte of each page that the folded images hold, by the page's number from AT."""
    found = {}
    for piece in merge_pages(known, own, {9: shared}):
        for page in range(piece.run.pages):
            at = (piece.run.start - AT) // PAGE + page
            assert at not in found, "a page is told twice"
            found[at] = os.pread(piece.source, 1, piece.offset + page * PAGE)
    return found


def runs(pages: list[int]) -> tuple[Run, ...]:
    return tuple(
        Run(start=AT + page * PAGE, pages=1, flags=PRESENT, offset=number * PAGE)
        for number, page in enumerate(pages)
    )


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The process's own pages, all A; and the shared file, with B in pages 2 to 5 of the mapping."""
    first = FAR // PAGE
    shared = {first + number: b"B" for number in (2, 3, 4, 5)} | {first + 40: b"C"}
    with (
        opened(tmp_path / "own", dict.fromkeys(range(8), b"A"), 8 * PAGE) as own,
        opened(tmp_path / "shared", shared, FAR + 64 * PAGE) as file,
    ):
        yield own, file


def test_what_was_written_to_hides_what_the_file_holds(whole: tuple[int, int]) -> None:
    known = Memory(pid=1, pages_id=1, mappings=(SHARED,), runs=runs([3, 5, 9]))

    assert content(known, *whole) == {2: b"B", 3: b"A", 4: b"B", 5: b"A", 9: b"A"}


def test_a_hole_stays_one_and_what_lies_beyond_the_mapping_is_not_taken(
    whole: tuple[int, int],
) -> None:
    known = Memory(pid=1, pages_id=1, mappings=(SHARED,), runs=())

    assert content(known, *whole) == {2: b"B", 3: b"B", 4: b"B", 5: b"B"}


def test_a_part_of_a_mapping_sees_its_part_of_the_file(whole: tuple[int, int]) -> None:
    """What is left after munmap or mprotect has an offset of its own."""
    part = Mapping(
        start=AT + 4 * PAGE,
        end=AT + 6 * PAGE,
        prot=1,
        flags=memory.MAP_PRIVATE,
        status=SHARED.status,
        file_id=9,
        offset=FAR + 4 * PAGE,
    )
    known = Memory(pid=1, pages_id=1, mappings=(part,), runs=())

    assert content(known, *whole) == {4: b"B", 5: b"B"}


def test_other_memory_stays_as_it_is_and_all_is_in_order(whole: tuple[int, int]) -> None:
    other = Mapping(
        start=AT + 16 * PAGE, end=AT + 20 * PAGE, prot=3, flags=0x22, status=memory.ANON_PRIVATE
    )
    # CRIU joins pages of neighbours: the last run is of both mappings.
    joined = Run(start=AT + 15 * PAGE, pages=3, flags=PRESENT, offset=PAGE)
    known = Memory(pid=1, pages_id=1, mappings=(SHARED, other), runs=(*runs([0]), joined))

    found = content(known, *whole)

    assert list(found) == [0, 2, 3, 4, 5, 15, 16, 17]
    assert {found[page] for page in (0, 15, 16, 17)} == {b"A"}


@given(st.sets(st.integers(0, 15)), st.sets(st.integers(0, 15)))
def test_each_page_is_the_processes_own_or_the_files_or_zero(
    tmp_path_factory: pytest.TempPathFactory, own: set[int], shared: set[int]
) -> None:
    place = tmp_path_factory.mktemp("fold")
    pages = {FAR // PAGE + number: b"B" for number in shared}
    known = Memory(pid=1, pages_id=1, mappings=(SHARED,), runs=runs(sorted(own)))
    with (
        opened(place / "own", dict.fromkeys(range(16), b"A"), 16 * PAGE) as mine,
        opened(place / "shared", pages, FAR + 64 * PAGE) as file,
    ):
        found = content(known, mine, file)

    expected = dict.fromkeys(shared, b"B") | dict.fromkeys(own, b"A")
    assert found == dict(sorted(expected.items()))
