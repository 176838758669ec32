"""Which allocator a process has mapped that counts on memory being anonymous.

glibc's, CPython's and torch's do not: they unmap, or do not care what a page holds that they gave back.
jemalloc, tcmalloc, mimalloc and the like give pages back with madvise and then take them for zero. They
come as libraries, or linked statically into an extension module: there their names stand in what they
would print.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from cria.images.memory import PROT_EXEC, Memory

_NAMES = re.compile(
    r"(jemalloc|tcmalloc|mimalloc|rpmalloc|snmalloc|scudo|hoard|tbbmalloc|libjvm|libv8|libnode)"
)
_WORDS = {
    b"<jemalloc>": "jemalloc",
    b"mimalloc": "mimalloc",
    b"tcmalloc": "tcmalloc",
    b"rpmalloc": "rpmalloc",
    b"snmalloc": "snmalloc",
    b"Scudo ERROR": "scudo",
}
_GO = b".go.buildinfo"
# CPython carries mimalloc since 3.13, but takes all its memory from it in the free-threaded build only.
_PYTHON, _FREE_THREADED = re.compile(r"(lib)?python3\."), re.compile(r"python3\.\d+t")

_IDENT = b"\x7fELF\x02\x01"  # 64 bit, little endian: the machines that vLLM runs on
# Elf64_Ehdr: e_shoff, e_shentsize, e_shnum, e_shstrndx. Elf64_Shdr: sh_name, sh_offset, sh_size.
_HEADER = struct.Struct("<40xQ10xHHH")
_SECTION = struct.Struct("<I20xQQ24x")


class Allocators:
    """Looks into each file once, however many processes have it mapped."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def why_not(self, known: Memory, paths: Mapping[int, str]) -> str | None:
        """Why the memory of a process cannot be shared, or None; `paths` are its files by their ID."""
        mapped = {m.file_id for m in known.mappings if m.prot & PROT_EXEC and m.file_id in paths}
        for path in sorted(paths[file_id] for file_id in mapped):
            if path not in self._known:
                self._known[path] = allocator_in(Path(path))
            if (found := self._known[path]) is not None:
                return f"{path} {found}"
        return None


def allocator_in(path: Path) -> str | None:
    """What the file at `path` holds that forbids sharing, in words; None for nothing."""
    if named := _NAMES.search(path.name):
        return f"is {named[1]}"
    try:
        with path.open("rb") as file:
            if file.read(len(_IDENT)) != _IDENT:
                return None
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
                return _in_elf(content, path.name)
    except OSError as error:
        return f"cannot be looked into: {error.strerror}"
    except (struct.error, IndexError):
        return "is not a whole ELF file"


def _in_elf(content: mmap.mmap, name: str) -> str | None:
    sections = dict(_sections(content)) or {b".rodata": (0, len(content))}
    if _GO in sections:
        return "is written in Go"
    for section, (begin, end) in sections.items():
        if section.startswith(b".rodata"):
            for word, allocator in _WORDS.items():
                if content.find(word, begin, end) >= 0 and not _asleep(allocator, name):
                    return f"holds {allocator}"
    return None


def _asleep(allocator: str, name: str) -> bool:
    python = _PYTHON.match(name) and not _FREE_THREADED.search(name)
    return allocator == "mimalloc" and bool(python)


def _sections(content: mmap.mmap) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Name, begin and end of each section, in bytes of the file."""
    table, size, count, names_at = _HEADER.unpack_from(content)
    if not table or size < _SECTION.size:
        return
    headers = [_SECTION.unpack_from(content, table + number * size) for number in range(count)]
    names = headers[names_at][1]
    for name, offset, length in headers:
        end = content.find(b"\0", names + name)
        yield content[names + name : end], (offset, min(offset + length, len(content)))
