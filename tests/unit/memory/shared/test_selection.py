"""Mappings are shared only where nothing speaks against it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cria.criu.images import memory
from cria.criu.images.memory import PAGE, PRESENT, Mapping, Memory, Run
from cria.memory.shared.selection import SMALLEST, is_safe, select_mappings

START = 0x7F0000000000
PLAIN = Mapping(
    start=START,
    end=START + (4 << 20),
    prot=memory.PROT_READ | memory.PROT_WRITE,
    flags=memory.MAP_PRIVATE | memory.MAP_ANONYMOUS,
    status=memory.REGULAR | memory.ANON_PRIVATE,
)


def memory_of(*mappings: Mapping, runs: tuple[Run, ...] | None = None) -> Memory:
    """Describe a process whose pages file has all pages of its mappings, or those of `runs`."""
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
        PLAIN, start=START + (8 << 20), end=START + (9 << 20), status=PLAIN.status | memory.HEAP
    )
    selection = select_mappings(memory_of(PLAIN, heap))

    assert selection.mappings == (PLAIN, heap)
    assert (selection.shared_bytes, selection.copied_bytes) == (5 << 20, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"flags": PLAIN.flags | memory.MAP_NORESERVE},  # a thread arena, jemalloc, mimalloc
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
        {"status": PLAIN.status | 1 << 18},  # of a later CRIU
        {"status": memory.REGULAR | memory.FILE_PRIVATE},
    ],
)
def test_what_differs_or_is_not_known_is_copied(change: dict[str, int]) -> None:
    mapping = replace(PLAIN, **change)

    assert not is_safe(mapping)
    assert select_mappings(memory_of(mapping)).mappings == ()


def test_a_mapping_that_contains_a_guard_is_copied() -> None:
    guard = replace(PLAIN, start=START + PAGE, end=START + 2 * PAGE, status=memory.GUARD)

    assert not is_safe(PLAIN, [guard])
    assert is_safe(PLAIN, [replace(guard, start=PLAIN.end, end=PLAIN.end + PAGE)])


def test_a_large_mapping_with_few_pages_is_copied() -> None:
    few = SMALLEST // PAGE - 1
    sparse = memory_of(PLAIN, runs=(Run(start=START, pages=few, flags=PRESENT, offset=0),))
    enough = memory_of(
        PLAIN,
        runs=(
            Run(start=START, pages=few, flags=PRESENT, offset=0),
            Run(start=START + (2 << 20), pages=1, flags=PRESENT, offset=few * PAGE),
        ),
    )

    assert select_mappings(sparse).mappings == ()
    assert select_mappings(sparse).copied_bytes == few * PAGE
    assert select_mappings(enough).mappings == (PLAIN,)


def test_nothing_is_shared_of_a_process_with_a_reason_against_it() -> None:
    selection = select_mappings(memory_of(PLAIN), "x.so holds jemalloc")

    assert selection.mappings == ()
    assert selection.why_not == "x.so holds jemalloc"
    assert selection.copied_bytes == 4 << 20
