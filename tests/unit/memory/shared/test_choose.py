"""Which mappings are shared: only those of which nothing is known that speaks against it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cria.criu.images import memory
from cria.criu.images.memory import PAGE, PRESENT, Mapping, Memory, Run
from cria.errors import CannotShare, CheckpointDamaged
from cria.memory.shared.builder import HUGE, LARGEST_FILE, assign_slots, copy_range
from cria.memory.shared.selection import SMALLEST, is_safe, select_mappings

AT = 0x7F0000000000
PLAIN = Mapping(
    start=AT,
    end=AT + (4 << 20),
    prot=memory.PROT_READ | memory.PROT_WRITE,
    flags=memory.MAP_PRIVATE | memory.MAP_ANONYMOUS,
    status=memory.REGULAR | memory.ANON_PRIVATE,
)


def known(*mappings: Mapping, runs: tuple[Run, ...] | None = None) -> Memory:
    """All pages of the mappings are in the pages file, or those of `runs`."""
    if runs is None:
        sizes = [m.end - m.start for m in mappings]
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        runs = tuple(
            Run(start=m.start, pages=size // PAGE, flags=PRESENT, offset=offset)
            for m, size, offset in zip(mappings, sizes, starts, strict=True)
        )
    return Memory(pid=7, pages_id=1, mappings=mappings, runs=runs)


def test_a_plain_mapping_is_shared_and_so_is_the_heap() -> None:
    heap = replace(
        PLAIN, start=AT + (8 << 20), end=AT + (9 << 20), status=PLAIN.status | memory.HEAP
    )
    choice = select_mappings(known(PLAIN, heap))

    assert choice.mappings == (PLAIN, heap)
    assert (choice.shared_bytes, choice.copied_bytes) == (5 << 20, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"flags": PLAIN.flags | memory.MAP_NORESERVE},  # an arena of a thread, jemalloc, mimalloc
        {"flags": PLAIN.flags | memory.MAP_GROWSDOWN},
        {"flags": PLAIN.flags | 0x2000},  # MAP_LOCKED
        {"flags": PLAIN.flags | 0x40000},  # MAP_HUGETLB
        {"prot": PLAIN.prot | memory.PROT_EXEC},
        {"prot": 0},
        {"advice": 1 << 10},  # MADV_DONTFORK
        {"advice": 1 << 15},  # MADV_NOHUGEPAGE: a stack
        {"advice": 1 << 18},  # MADV_WIPEONFORK
        {"status": PLAIN.status | memory.STACK},
        {"status": PLAIN.status | 1 << 15},  # a shadow stack
        {"status": PLAIN.status | 1 << 18},  # what a later CRIU may mean by it
        {"status": memory.REGULAR | memory.FILE_PRIVATE},
    ],
)
def test_what_is_known_to_differ_or_not_known_is_copied(change: dict[str, int]) -> None:
    mapping = replace(PLAIN, **change)

    assert not is_safe(mapping)
    assert select_mappings(known(mapping)).mappings == ()


def test_a_mapping_with_a_guard_in_it_is_copied() -> None:
    guard = replace(PLAIN, start=AT + PAGE, end=AT + 2 * PAGE, status=memory.GUARD)

    assert not is_safe(PLAIN, [guard])
    assert is_safe(PLAIN, [replace(guard, start=PLAIN.end, end=PLAIN.end + PAGE)])


def test_what_has_few_pages_is_copied_however_large_it_is() -> None:
    few = SMALLEST // PAGE - 1
    sparse = known(PLAIN, runs=(Run(start=AT, pages=few, flags=PRESENT, offset=0),))
    enough = known(
        PLAIN,
        runs=(
            Run(start=AT, pages=few, flags=PRESENT, offset=0),
            Run(start=AT + (2 << 20), pages=1, flags=PRESENT, offset=few * PAGE),
        ),
    )

    assert select_mappings(sparse).mappings == ()
    assert select_mappings(sparse).copied_bytes == few * PAGE
    assert select_mappings(enough).mappings == (PLAIN,)


def test_a_reason_against_the_process_is_one_against_all_of_it() -> None:
    choice = select_mappings(known(PLAIN), "x.so holds jemalloc")

    assert choice.mappings == ()
    assert choice.why_not == "x.so holds jemalloc"
    assert choice.copied_bytes == 4 << 20


def test_what_no_file_can_hold_with_room_to_grow_is_refused() -> None:
    with pytest.raises(CannotShare):
        assign_slots([replace(PLAIN, end=AT + LARGEST_FILE)], 1 << 30)


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(PAGE))
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("wb") as target,
        pytest.raises(CheckpointDamaged),
    ):
        copy_range(source.fileno(), 0, target.fileno(), 0, 2 * PAGE)


@given(
    st.lists(st.tuples(st.integers(1, 1 << 18), st.integers(0, 1 << 20)), min_size=1, max_size=60),
    st.integers(1 << 20, 1 << 41),
)
def test_each_mapping_has_a_place_of_its_own_and_room_to_grow(
    sizes: list[tuple[int, int]], room: int
) -> None:
    mappings, at = [], AT
    for pages, gap in sizes:
        mappings.append(replace(PLAIN, start=at, end=at + pages * PAGE))
        at += (pages + gap) * PAGE

    placed, size = assign_slots(mappings, room)

    assert size <= LARGEST_FILE
    assert [slot.mapping for slot in placed] == mappings
    ends = [slot.offset + slot.mapping.end - slot.mapping.start for slot in placed]
    assert size - max(ends) >= room // PAGE * PAGE
    for end, following in zip(ends, placed[1:], strict=False):
        assert following.offset >= end + min(room, LARGEST_FILE // len(sizes) // 4) // PAGE * PAGE
    assert all((slot.offset - slot.mapping.start) % HUGE == 0 for slot in placed)
