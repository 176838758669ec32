"""A dump materializes shared memory: the pages that a process wrote to, else what the shared file holds."""

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

START, OFFSET = 0x7F0000000000, 1 << 30
SHARED = Mapping(
    start=START,
    end=START + 16 * PAGE,
    prot=3,
    flags=memory.MAP_PRIVATE,
    status=memory.REGULAR | memory.FILE_PRIVATE,
    file_id=9,
    offset=OFFSET,
)


@contextmanager
def opened(path: Path, pages: dict[int, bytes], size: int) -> Iterator[int]:
    """Open a sparse file that has pages with these numbers, each filled with a byte."""
    with path.open("w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), size)
        for number, byte in pages.items():
            os.pwrite(file.fileno(), byte * PAGE, number * PAGE)
        yield file.fileno()


def content(process: Memory, own: int, shared: int) -> dict[int, bytes]:
    """Return the first byte of each page of the merged images, by the number of the page from START."""
    pages = {}
    for sourced in merge_pages(process, own, {9: shared}):
        for page in range(sourced.run.pages):
            number = (sourced.run.start - START) // PAGE + page
            assert number not in pages, "a page comes twice"
            pages[number] = os.pread(sourced.source, 1, sourced.offset + page * PAGE)
    return pages


def runs(pages: list[int]) -> tuple[Run, ...]:
    return tuple(
        Run(start=START + page * PAGE, pages=1, flags=PRESENT, offset=number * PAGE)
        for number, page in enumerate(pages)
    )


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Open the pages file, all A, and the shared file, with B in pages 2 to 5 of the mapping."""
    first = OFFSET // PAGE
    shared = {first + number: b"B" for number in (2, 3, 4, 5)} | {first + 40: b"C"}
    with (
        opened(tmp_path / "own", dict.fromkeys(range(8), b"A"), 8 * PAGE) as own,
        opened(tmp_path / "shared", shared, OFFSET + 64 * PAGE) as file,
    ):
        yield own, file


def test_a_page_that_was_written_to_hides_that_of_the_file(sources: tuple[int, int]) -> None:
    process = Memory(pid=1, pages_id=1, mappings=(SHARED,), runs=runs([3, 5, 9]))

    assert content(process, *sources) == {2: b"B", 3: b"A", 4: b"B", 5: b"A", 9: b"A"}


def test_a_hole_stays_absent_and_nothing_beyond_the_mapping_is_read(
    sources: tuple[int, int],
) -> None:
    process = Memory(pid=1, pages_id=1, mappings=(SHARED,), runs=())

    assert content(process, *sources) == {2: b"B", 3: b"B", 4: b"B", 5: b"B"}


def test_a_part_of_a_mapping_has_its_part_of_the_file(sources: tuple[int, int]) -> None:
    """What is left after munmap or mprotect has an offset of its own."""
    part = Mapping(
        start=START + 4 * PAGE,
        end=START + 6 * PAGE,
        prot=1,
        flags=memory.MAP_PRIVATE,
        status=SHARED.status,
        file_id=9,
        offset=OFFSET + 4 * PAGE,
    )
    process = Memory(pid=1, pages_id=1, mappings=(part,), runs=())

    assert content(process, *sources) == {4: b"B", 5: b"B"}


def test_other_memory_is_not_changed_and_all_pages_are_in_order(sources: tuple[int, int]) -> None:
    other = Mapping(
        start=START + 16 * PAGE,
        end=START + 20 * PAGE,
        prot=3,
        flags=0x22,
        status=memory.ANON_PRIVATE,
    )
    # CRIU joins pages of neighbours: the last run is of both mappings.
    joined = Run(start=START + 15 * PAGE, pages=3, flags=PRESENT, offset=PAGE)
    process = Memory(pid=1, pages_id=1, mappings=(SHARED, other), runs=(*runs([0]), joined))

    pages = content(process, *sources)

    assert list(pages) == [0, 2, 3, 4, 5, 15, 16, 17]
    assert {pages[page] for page in (0, 15, 16, 17)} == {b"A"}


@given(st.sets(st.integers(0, 15)), st.sets(st.integers(0, 15)))
def test_each_page_is_of_the_process_or_of_the_file_or_zero(
    tmp_path_factory: pytest.TempPathFactory, own: set[int], shared: set[int]
) -> None:
    directory = tmp_path_factory.mktemp("pages")
    in_file = {OFFSET // PAGE + number: b"B" for number in shared}
    process = Memory(pid=1, pages_id=1, mappings=(SHARED,), runs=runs(sorted(own)))
    with (
        opened(directory / "own", dict.fromkeys(range(16), b"A"), 16 * PAGE) as mine,
        opened(directory / "shared", in_file, OFFSET + 64 * PAGE) as file,
    ):
        pages = content(process, mine, file)

    expected = dict.fromkeys(shared, b"B") | dict.fromkeys(own, b"A")
    assert pages == dict(sorted(expected.items()))
