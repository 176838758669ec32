"""Mappings that become those of a file and anonymous again, in images as CRIU writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cria.criu import program
from cria.criu.images import files, framing, memory
from cria.criu.images.memory import MappedFile
from cria.criu.messages import load
from cria.errors import CheckpointMismatch, CriaError

AT, HEAP, PAGE = 0x7F0000000000, 0x560000000000, memory.PAGE


@pytest.fixture(scope="module", autouse=True)
def _needs_pycriu() -> None:
    try:
        for schema in ("mm", "fdinfo"):
            load(schema, program.find())  # a process keeps to what it loaded first
    except CriaError:
        pytest.skip("needs pycriu: make setup")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A process with a heap and a plain mapping, and a files.img with one file, number 4."""
    entry = load("mm").mm_entry()
    for field in entry.DESCRIPTOR.fields:
        if field.name.startswith("mm_") and field.number < 12:
            setattr(entry, field.name, 0)
    entry.exe_file_id, entry.mm_start_brk, entry.mm_brk = 4, HEAP, HEAP + 8 * PAGE
    plain = memory.REGULAR | memory.ANON_PRIVATE
    for start, status in ((HEAP, plain | memory.HEAP), (AT, plain)):
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
    image = framing.Image(header=framing.header(framing.MM), entries=(entry.SerializeToString(),))
    framing.write(tmp_path / "mm-7.img", image)
    empty = framing.Image(header=framing.header(framing.FILES), entries=())
    file = MappedFile(file_id=4, path="/usr/bin/python3", size_bytes=1, mode=0o100755)
    framing.write(tmp_path / files.NAME, memory.with_files(empty, [file]))
    return tmp_path


def mm(directory: Path) -> Any:
    return load("mm").mm_entry.FromString(framing.first(directory / "mm-7.img", framing.MM))


def test_a_mapping_becomes_one_of_the_file_and_anonymous_again(images: Path) -> None:
    before = mm(images)
    out = images / "out"
    out.mkdir()

    memory.map_file(images, out, 7, places={HEAP: 0, AT: 1 << 30}, file_id=5)

    heap, plain = mm(out).vmas
    assert (plain.shmid, plain.pgoff, plain.flags, plain.fdflags) == (5, 1 << 30, 0x2, 0)
    assert heap.status == plain.status == memory.REGULAR | memory.FILE_PRIVATE
    assert mm(images) == before

    memory.map_nothing(out, 7, {5})

    assert mm(out) == before


def test_only_the_mappings_that_are_named_change(images: Path) -> None:
    memory.map_file(images, images, 7, places={AT: 0}, file_id=5)

    assert [bool(vma.flags & 0x20) for vma in mm(images).vmas] == [True, False]


def test_files_are_added_and_taken_away_again(images: Path) -> None:
    before = files.read(images)
    file = MappedFile(file_id=5, path="/c/.q.shared/k/7.mem", size_bytes=1 << 42, mode=0o100400)

    after = memory.with_files(before, [file])

    (added,) = (f for f in files.regular_files(after) if f.file_id == 5)
    assert (added.path, added.size_bytes, added.mode) == (file.path, 1 << 42, 0o100400)
    assert memory.highest_id(after) == 5
    assert memory.without_files(after, {5}) == before


def test_a_number_that_is_taken_is_refused(images: Path) -> None:
    file = MappedFile(file_id=4, path="/x", size_bytes=1, mode=0o100400)

    with pytest.raises(CheckpointMismatch):
        memory.with_files(files.read(images), [file])
