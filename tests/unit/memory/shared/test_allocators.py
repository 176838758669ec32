"""Allocators that count on anonymous memory are known by name, and by their words where they hide."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from cria.criu.images import memory
from cria.criu.images.memory import Mapping, Memory
from cria.memory.shared.selection import Allocators, find_allocator


@pytest.mark.parametrize(
    "name", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so", "libjvm.so"]
)
def test_a_library_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    assert str(find_allocator(tmp_path / name)).startswith("is ")


def elf(path: Path, section: str, content: bytes) -> Path:
    """A small ELF file with one section: what a linker puts there when an allocator is linked in."""
    names = b"\0" + section.encode() + b"\0.shstrtab\0"
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    at = 64
    table = at + len(content) + len(names)
    header = head + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)

    def one(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)

    sections = (
        bytes(64) + one(1, at, len(content)) + one(2 + len(section), at + len(content), len(names))
    )
    path.write_bytes(header + content + names + sections)
    return path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (b"%s<jemalloc>: Error in malloc()\n\0", "jemalloc"),
        (b"mimalloc: error: %s\0", "mimalloc"),
        (b"tcmalloc: large alloc %lld bytes\0", "tcmalloc"),
    ],
)
def test_one_that_is_linked_into_an_extension_is_known_by_its_words(
    tmp_path: Path, words: bytes, found: str
) -> None:
    path = elf(tmp_path / "_rust.abi3.so", ".rodata", b"before\0" + words)

    assert find_allocator(path) == f"holds {found}"


def test_the_same_words_elsewhere_than_in_constants_do_not_matter(tmp_path: Path) -> None:
    assert find_allocator(elf(tmp_path / "x.so", ".comment", b"mimalloc")) is None


def test_go_brings_its_own(tmp_path: Path) -> None:
    assert find_allocator(elf(tmp_path / "x.so", ".go.buildinfo", b"x")) == "is written in Go"


def test_cpython_uses_its_mimalloc_in_the_free_threaded_build_only(tmp_path: Path) -> None:
    words = b"mimalloc: \0"

    assert find_allocator(elf(tmp_path / "libpython3.13.so.1.0", ".rodata", words)) is None
    assert find_allocator(elf(tmp_path / "python3.14", ".rodata", words)) is None
    assert find_allocator(elf(tmp_path / "libpython3.13t.so.1.0", ".rodata", words)) is not None


def test_this_python_and_its_libc_hold_none() -> None:
    mapped = {
        line.split(maxsplit=5)[5]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "r-xp" in line and "/lib" in line
    }

    libc = [path for path in mapped if "libc.so" in path]
    assert [find_allocator(Path(path)) for path in libc] == [None] * len(libc)


def test_what_cannot_be_looked_into_is_not_trusted(tmp_path: Path) -> None:
    cut = tmp_path / "cut.so"
    cut.write_bytes(elf(tmp_path / "x.so", ".rodata", b"x").read_bytes()[:100])

    assert "cannot be read" in str(find_allocator(tmp_path / "none.so"))
    assert find_allocator(cut) is not None


def test_only_files_mapped_to_be_run_matter(tmp_path: Path) -> None:
    path = elf(tmp_path / "x.so", ".rodata", b"mimalloc: ")

    def process(prot: int) -> Memory:
        mapping = Mapping(start=0, end=4096, prot=prot, flags=2, status=0x41, file_id=5)
        return Memory(pid=1, pages_id=1, mappings=(mapping,), runs=())

    looked = Allocators()
    assert looked.why_not(process(memory.PROT_READ), {5: str(path)}) is None
    assert looked.why_not(process(memory.PROT_EXEC), {5: str(path)}) == f"{path} holds mimalloc"
