"""What a process still misses, against a plain list of pages to which the same is done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.criu.images.memory import ANON_PRIVATE, LAZY, PAGE, PRESENT, REGULAR, Mapping, Memory, Run
from cria.errors import CheckpointMismatch
from cria.memory.lazy.missing import PIECE, Missing, Piece, complete_of, pieces_of

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
    st.tuples(st.just("arrive"), ranges),
    st.tuples(st.just("drop"), ranges),
    st.tuples(st.just("move"), ranges, st.integers(0, 2 * PAGES)),
)


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=12), st.lists(changes))
def test_each_page_is_wanted_from_where_it_lay_at_the_dump(
    layout: list[tuple[int, bool]], asked: list[tuple]
) -> None:
    pieces, model, page = [], {}, 0
    for pages, filled in layout:
        if filled:
            pieces.append(piece(page, pages, offset=1000 + page))
            model |= {number: 1000 + number for number in range(page, page + pages)}
        page += pages
    missing = Missing(pieces)

    for what, (first, pages), *to in asked:
        if what == "arrive":
            found = missing.at(first * PAGE)
            if found is not None:
                missing.arrive(found)
                for number in range(found.start // PAGE, found.end // PAGE):
                    del model[number]
        elif what == "drop":
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
        found = at.offset // PAGE + number - at.start // PAGE if at is not None else None
        assert found == model.get(number)


def test_pieces_end_where_mappings_do() -> None:
    """One call to the kernel fills no two mappings."""
    two = [mapping(0x100000, 3), mapping(0x103000, 5)]

    found = list(pieces_of(memory(two, [run(0x100000, 8, 0)])))

    assert [(p.start, p.size, p.offset) for p in found] == [
        (0x100000, 3 * PAGE, 0),
        (0x103000, 5 * PAGE, 3 * PAGE),
    ]


def test_pieces_are_of_one_size_and_begin_at_multiples_of_it() -> None:
    pages = 3 * PIECE // PAGE
    start = 5 * PIECE + PAGE

    found = list(pieces_of(memory([mapping(start, pages)], [run(start, pages, PAGE)])))

    assert sum(p.size for p in found) == pages * PAGE
    assert all(p.start % PIECE == 0 for p in found[1:])
    assert all(p.offset == p.start - start + PAGE for p in found)


def test_what_criu_loads_itself_is_no_piece() -> None:
    runs = [run(0x100000, 2, 0, PRESENT), run(0x102000, 2, 2 * PAGE)]

    found = list(pieces_of(memory([mapping(0x100000, 4)], runs)))

    assert [(p.start, p.offset) for p in found] == [(0x102000, 2 * PAGE)]


def test_memory_that_is_elsewhere_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match="not in the checkpoint"):
        list(pieces_of(memory([mapping(0x100000, 4)], [run(0x100000, 4, None, LAZY)])))


def test_a_mapping_is_complete_only_as_a_whole() -> None:
    """The kernel makes several of a mapping that is registered in part, and mremap(2) refuses those."""
    parts = [
        mapping(0x100000, 4),
        mapping(0x200000, 4),
        mapping(0x300000, 4, PRIVATE_ANONYMOUS | LOCKED),
        mapping(0x400000, 4),
    ]
    runs = [run(0x101000, 1, 0), run(0x200000, 4, PAGE, PRESENT)]

    assert [m.start for m in complete_of(memory(parts, runs))] == [0x200000, 0x400000]


def test_zeros_end_where_the_next_piece_begins() -> None:
    missing = Missing([piece(10, 2), piece(500, 1)])

    assert missing.empty_from(8 * PAGE) == 2 * PAGE
    assert missing.empty_from(12 * PAGE) == PIECE


def test_a_row_is_of_what_follows_in_the_pages_file_too() -> None:
    pieces = [piece(0, 2, offset=10), piece(2, 2, offset=12), piece(4, 2, offset=90)]
    missing = Missing(pieces)

    assert missing.row_from(pieces[0], PIECE) == pieces[:2]
    assert missing.row_from(pieces[0], 3 * PAGE) == pieces[:1]
    missing.arrive(pieces[1])
    assert missing.row_from(pieces[0], PIECE) == pieces[:1]


def test_a_child_misses_what_its_parent_missed_and_gets_it_for_itself() -> None:
    parent = Missing([piece(0, 4)])
    child = parent.copy()
    wanted = parent.at(0)
    assert wanted is not None

    parent.arrive(wanted)

    assert child.at(0) is not None
    assert (parent.bytes, child.bytes) == (0, 4 * PAGE)


def test_what_was_dropped_counts_as_arrived_for_whoever_still_holds_it() -> None:
    """A working set lists pieces, and one that was given back must not be filled again."""
    held = piece(0, 4)

    Missing([held]).drop(0, 4 * PAGE)

    assert held.arrived
