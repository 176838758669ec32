"""Missing memory is tracked like a plain list of pages that is changed in the same way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.criu.images.memory import ANON_PRIVATE, LAZY, PAGE, PRESENT, REGULAR, Mapping, Memory, Run
from cria.errors import CheckpointMismatch
from cria.memory.lazy.missing import PIECE, Missing, Piece, complete_mappings, lazy_pieces

PAGES = 64
PRIVATE_ANONYMOUS, LOCKED = 0x22, 0x2000


def mapping(start: int, pages: int, flags: int = PRIVATE_ANONYMOUS) -> Mapping:
    end = start + pages * PAGE
    return Mapping(start=start, end=end, prot=3, flags=flags, status=REGULAR | ANON_PRIVATE)


def run(start: int, pages: int, offset: int | None, flags: int = LAZY | PRESENT) -> Run:
    return Run(start=start, pages=pages, flags=flags, offset=offset)


def memory(mappings: list[Mapping], runs: list[Run]) -> Memory:
    return Memory(pid=7, pages_id=1, mappings=tuple(mappings), runs=tuple(runs))


def piece(page: int, pages: int, offset: int = 0) -> Piece:
    start = page * PAGE
    return Piece(start=start, size=pages * PAGE, original=start, offset=offset * PAGE)


ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 16))
changes = st.one_of(
    st.tuples(st.just("load"), ranges),
    st.tuples(st.just("drop"), ranges),
    st.tuples(st.just("move"), ranges, st.integers(0, 2 * PAGES)),
)


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=12), st.lists(changes))
def test_each_page_is_loaded_from_where_it_lay_at_the_dump(
    layout: list[tuple[int, bool]], done: list[tuple]
) -> None:
    pieces, model, page = [], {}, 0
    for pages, filled in layout:
        if filled:
            pieces.append(piece(page, pages, offset=1000 + page))
            model |= {number: 1000 + number for number in range(page, page + pages)}
        page += pages
    missing = Missing(pieces)

    for change, (first, pages), *to in done:
        if change == "load":
            touched = missing.at(first * PAGE)
            if touched is not None:
                missing.mark_loaded(touched)
                for number in range(touched.start // PAGE, touched.end // PAGE):
                    del model[number]
        elif change == "drop":
            missing.drop(first * PAGE, (first + pages) * PAGE)
            for number in range(first, first + pages):
                model.pop(number, None)
        elif abs(to[0] - first) >= pages:  # mremap(2) refuses ranges that overlap
            missing.move(first * PAGE, to[0] * PAGE, pages * PAGE)
            moved = [model.pop(number, None) for number in range(first, first + pages)]
            for number, offset in enumerate(moved, start=to[0]):
                model.pop(number, None)
                if offset is not None:
                    model[number] = offset

        assert missing.bytes == len(model) * PAGE
    for number in range(4 * PAGES):
        at = missing.at(number * PAGE)
        offset = at.offset // PAGE + number - at.start // PAGE if at is not None else None
        assert offset == model.get(number)


def test_pieces_end_where_mappings_end() -> None:
    """One call to the kernel cannot load pages of two mappings."""
    two = [mapping(0x100000, 3), mapping(0x103000, 5)]

    pieces = list(lazy_pieces(memory(two, [run(0x100000, 8, 0)])))

    assert [(piece.start, piece.size, piece.offset) for piece in pieces] == [
        (0x100000, 3 * PAGE, 0),
        (0x103000, 5 * PAGE, 3 * PAGE),
    ]


def test_pieces_have_one_size_and_begin_at_multiples_of_it() -> None:
    pages = 3 * PIECE // PAGE
    start = 5 * PIECE + PAGE

    pieces = list(lazy_pieces(memory([mapping(start, pages)], [run(start, pages, PAGE)])))

    assert sum(p.size for p in pieces) == pages * PAGE
    assert all(p.start % PIECE == 0 for p in pieces[1:])
    assert all(p.offset == p.start - start + PAGE for p in pieces)


def test_pages_that_criu_loads_are_in_no_piece() -> None:
    runs = [run(0x100000, 2, 0, PRESENT), run(0x102000, 2, 2 * PAGE)]

    pieces = list(lazy_pieces(memory([mapping(0x100000, 4)], runs)))

    assert [(p.start, p.offset) for p in pieces] == [(0x102000, 2 * PAGE)]


def test_memory_that_is_not_in_the_images_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match="not in the checkpoint"):
        list(lazy_pieces(memory([mapping(0x100000, 4)], [run(0x100000, 4, None, LAZY)])))


def test_a_mapping_is_complete_when_no_page_of_it_is_lazy() -> None:
    """The kernel splits a mapping that is registered in part, and mremap(2) refuses to move several."""
    parts = [
        mapping(0x100000, 4),
        mapping(0x200000, 4),
        mapping(0x300000, 4, PRIVATE_ANONYMOUS | LOCKED),
        mapping(0x400000, 4),
    ]
    runs = [run(0x101000, 1, 0), run(0x200000, 4, PAGE, PRESENT)]

    assert [m.start for m in complete_mappings(memory(parts, runs))] == [0x200000, 0x400000]


def test_empty_memory_ends_where_the_next_piece_begins() -> None:
    missing = Missing([piece(10, 2), piece(500, 1)])

    assert missing.empty_from(8 * PAGE) == 2 * PAGE
    assert missing.empty_from(12 * PAGE) == PIECE


def test_a_sequence_is_consecutive_in_the_pages_file_too() -> None:
    pieces = [piece(0, 2, offset=10), piece(2, 2, offset=12), piece(4, 2, offset=90)]
    missing = Missing(pieces)

    assert missing.sequence_from(pieces[0], PIECE) == pieces[:2]
    assert missing.sequence_from(pieces[0], 3 * PAGE) == pieces[:1]
    missing.mark_loaded(pieces[1])
    assert missing.sequence_from(pieces[0], PIECE) == pieces[:1]


def test_a_child_misses_what_its_parent_missed() -> None:
    parent = Missing([piece(0, 4)])
    child = parent.copy()
    first = parent.at(0)
    assert first is not None

    parent.mark_loaded(first)

    assert child.at(0) is not None
    assert (parent.bytes, child.bytes) == (0, 4 * PAGE)


def test_a_dropped_piece_counts_as_loaded() -> None:
    """A working set lists pieces: one that the process has given back must not be loaded."""
    dropped = piece(0, 4)

    Missing([dropped]).drop(0, 4 * PAGE)

    assert dropped.loaded
