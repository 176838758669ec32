"""The images of memory: pagemaps and mappings as CRIU writes them, read and changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cria.criu import program
from cria.criu.images import framing, memory
from cria.criu.images.directory import CriuImages
from cria.criu.images.framing import Image
from cria.criu.images.memory import LAZY, PAGE, PRESENT, Run
from cria.criu.images.schema import Schema
from cria.criu.messages import load
from cria.errors import CheckpointDamaged, CriaError

BASE, HEAP = 0x7F0000000000, 0x560000000000


@pytest.fixture(scope="module", autouse=True)
def _needs_pycriu() -> None:
    try:
        for schema in ("mm", "pagemap"):
            load(schema, program.find())  # a process keeps to what it loaded first
    except CriaError:
        pytest.skip("needs pycriu: make setup")


@pytest.fixture
def images(tmp_path: Path) -> CriuImages:
    """A process with a plain mapping, a private file mapping and a stack; three pages are in its file."""
    mm = load("mm", program.find())
    kinds = {0: memory.ANON_PRIVATE, 1: memory.FILE_PRIVATE, 2: memory.ANON_PRIVATE | memory.STACK}
    entry = mm.mm_entry(
        **{
            f.name: 0
            for f in mm.mm_entry.DESCRIPTOR.fields
            if f.name.startswith("mm_") and f.number < 12
        }
    )
    entry.exe_file_id = 1
    for number, status in kinds.items():
        start = BASE + number * 16 * PAGE
        entry.vmas.add(
            start=start,
            end=start + 16 * PAGE,
            pgoff=0,
            shmid=0,
            prot=3,
            flags=memory.MAP_PRIVATE,
            status=status | memory.REGULAR,
            fd=-1,
        )
    image = framing.Image(header=framing.header(framing.MM), entries=(entry.SerializeToString(),))
    framing.write(tmp_path / "mm-7.img", image)
    runs = [
        Run(start=BASE, pages=2, flags=PRESENT | LAZY, offset=0),
        Run(start=BASE + 4 * PAGE, pages=1, flags=memory.IN_PARENT, offset=None),
        Run(start=BASE + 32 * PAGE, pages=1, flags=PRESENT, offset=2 * PAGE),
    ]
    found = CriuImages(tmp_path, program.find())
    found.write_pagemap(7, 3, runs)
    (tmp_path / "pages-3.img").write_bytes(bytes(3 * PAGE))
    return found


def test_a_pagemap_is_read_as_it_was_written(images: CriuImages) -> None:
    found = images.memory(7)

    assert found.pages_file == "pages-3.img"
    assert [(run.start, run.pages, run.offset) for run in found.runs] == [
        (BASE, 2, 0),
        (BASE + 4 * PAGE, 1, None),
        (BASE + 32 * PAGE, 1, 2 * PAGE),
    ]
    assert images.pids == [7]


def test_only_private_anonymous_memory_reads_as_zero_where_a_page_is_absent(
    images: CriuImages,
) -> None:
    assert [mapping.is_plain for mapping in images.memory(7).mappings] == [True, False, False]


def test_a_pages_file_of_another_size_is_refused(images: CriuImages) -> None:
    with (images.path / "pages-3.img").open("ab") as file:
        file.write(bytes(PAGE))

    with pytest.raises(CheckpointDamaged, match="does not hold the pages"):
        images.memory(7)


@pytest.fixture
def heap_and_plain() -> Image:
    """The mappings of a process with a heap and a plain mapping."""
    entry = load("mm", program.find()).mm_entry()
    for field in entry.DESCRIPTOR.fields:
        if field.name.startswith("mm_") and field.number < 12:
            setattr(entry, field.name, 0)
    entry.exe_file_id, entry.mm_start_brk, entry.mm_brk = 4, HEAP, HEAP + 8 * PAGE
    plain = memory.REGULAR | memory.ANON_PRIVATE
    for start, status in ((HEAP, plain | memory.HEAP), (BASE, plain)):
        size = 8 * PAGE
        entry.vmas.add(
            start=start,
            end=start + size,
            pgoff=0,
            shmid=0,
            prot=3,
            flags=0x22,
            status=status,
            fd=-1,
        )
    return Image(header=framing.header(framing.MM), entries=(entry.SerializeToString(),))


def vmas(image: Image) -> Any:
    return load("mm", program.find()).mm_entry.FromString(image.entries[0]).vmas


def test_a_mapping_becomes_one_of_a_file_and_anonymous_again(heap_and_plain: Image) -> None:
    before, schema = heap_and_plain, Schema(program.find())

    mapped = memory.map_file(before, schema, offsets={HEAP: 0, BASE: 1 << 30}, file_id=5)

    heap, plain = vmas(mapped)
    assert (plain.shmid, plain.pgoff, plain.flags, plain.fdflags) == (5, 1 << 30, 0x2, 0)
    assert heap.status == plain.status == memory.REGULAR | memory.FILE_PRIVATE
    assert memory.map_anonymous(mapped, schema, {5}) == before


def test_only_the_mappings_that_are_named_change(heap_and_plain: Image) -> None:
    mapped = memory.map_file(heap_and_plain, Schema(program.find()), offsets={BASE: 0}, file_id=5)

    assert [bool(vma.flags & 0x20) for vma in vmas(mapped)] == [True, False]
