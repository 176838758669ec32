"""The file of a backing store: each mapping has its own place in it and room to grow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.criu.images import memory
from cria.criu.images.memory import PAGE, Mapping
from cria.errors import CannotShare, CheckpointDamaged
from cria.memory.shared.builder import HUGE_PAGE, LARGEST_FILE, assign_slots, copy_range

START = 0x7F0000000000


def mapping(start: int, end: int) -> Mapping:
    return Mapping(
        start=start,
        end=end,
        prot=memory.PROT_READ | memory.PROT_WRITE,
        flags=memory.MAP_PRIVATE | memory.MAP_ANONYMOUS,
        status=memory.REGULAR | memory.ANON_PRIVATE,
    )


def test_a_mapping_too_large_for_a_file_is_refused() -> None:
    with pytest.raises(CannotShare):
        assign_slots([mapping(START, START + LARGEST_FILE)], 1 << 30)


def test_a_source_that_is_too_short_is_reported(tmp_path: Path) -> None:
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
def test_each_mapping_has_its_own_slot_and_room_to_grow(
    sizes: list[tuple[int, int]], growth: int
) -> None:
    mappings, start = [], START
    for pages, gap in sizes:
        mappings.append(mapping(start, start + pages * PAGE))
        start += (pages + gap) * PAGE

    slots, size = assign_slots(mappings, growth)

    assert size <= LARGEST_FILE
    assert [slot.mapping for slot in slots] == mappings
    ends = [slot.offset + slot.mapping.end - slot.mapping.start for slot in slots]
    assert size - max(ends) >= growth // PAGE * PAGE
    hole = min(growth, LARGEST_FILE // len(sizes) // 4) // PAGE * PAGE
    for end, slot in zip(ends, slots[1:], strict=False):
        assert slot.offset >= end + hole
    assert all((slot.offset - slot.mapping.start) % HUGE_PAGE == 0 for slot in slots)
