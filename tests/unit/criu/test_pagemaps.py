"""What pagemap and mm images say, read back as they were written."""

from pathlib import Path

import pytest

from cria.criu import program
from cria.criu.images import framing, memory
from cria.criu.images.memory import LAZY, PAGE, PRESENT, Run
from cria.criu.messages import load
from cria.errors import CheckpointDamaged, CriaError

BASE = 0x7F0000000000


@pytest.fixture(scope="module", autouse=True)
def _needs_pycriu() -> None:
    try:
        for schema in ("mm", "pagemap"):
            load(schema, program.find())  # a process keeps to what it loaded first
    except CriaError:
        pytest.skip("needs pycriu: make setup")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A process with a plain mapping, a private file mapping and a stack; three pages are in its file."""
    mm = load("mm")
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
    memory.write_pagemap(tmp_path, 7, 3, runs)
    (tmp_path / "pages-3.img").write_bytes(bytes(3 * PAGE))
    return tmp_path


def test_a_pagemap_is_read_as_it_was_written(images: Path) -> None:
    found = memory.read(images, 7)

    assert found.pages_file == "pages-3.img"
    assert [(run.start, run.pages, run.offset) for run in found.runs] == [
        (BASE, 2, 0),
        (BASE + 4 * PAGE, 1, None),
        (BASE + 32 * PAGE, 1, 2 * PAGE),
    ]
    assert memory.pids(images) == [7]


def test_only_private_anonymous_memory_reads_as_zero_where_a_page_is_absent(images: Path) -> None:
    assert [mapping.is_plain for mapping in memory.read(images, 7).mappings] == [True, False, False]


def test_a_pages_file_of_another_size_is_refused(images: Path) -> None:
    with (images / "pages-3.img").open("ab") as file:
        file.write(bytes(PAGE))

    with pytest.raises(CheckpointDamaged, match="does not hold the pages"):
        memory.read(images, 7)
