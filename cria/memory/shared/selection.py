"""Which mappings of a process clones may share: pure, and where it is not sure the answer is no."""

from __future__ import annotations

import mmap
import re
import struct
from collections import abc
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from cria.criu.images.memory import (
    ANON_PRIVATE,
    GUARD,
    HEAP,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PROT_EXEC,
    PROT_READ,
    REGULAR,
    Mapping,
    Memory,
)
from cria.memory import zero_pages

SMALLEST = 256 << 10  # what is less is cheaper copied, and thread areas are among it

# Only these may be set. What glibc reserves for the arena of a thread has MAP_NORESERVE, and so has what
# jemalloc and mimalloc take; locked, huge and growing mappings have bits of their own; stacks of threads
# have been advised MADV_NOHUGEPAGE since Linux 6.7; MADV_DONTFORK and MADV_WIPEONFORK mean what they say.
_STATUS = REGULAR | ANON_PRIVATE | HEAP
_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS
_ADVICE = 1 << 14 | 1 << 16  # MADV_HUGEPAGE, MADV_DONTDUMP


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What of one process is shared; `why_not` says why nothing is."""

    mappings: tuple[Mapping, ...] = ()
    shared_bytes: int = 0
    copied_bytes: int = 0
    why_not: str | None = None


def select_mappings(known: Memory, why_not: str | None = None) -> Selection:
    """The mappings of one process that are safe to share, and worth it.

    With a reason `why_not`, such as an allocator that counts on anonymous memory, none is.
    """
    present: dict[Mapping, int] = {}
    for piece in zero_pages.split_by_mapping(known):
        if piece.mapping is not None and piece.run.offset is not None:
            present[piece.mapping] = present.get(piece.mapping, 0) + piece.run.size
    guards = [mapping for mapping in known.mappings if mapping.status & GUARD]
    chosen = {
        mapping: size
        for mapping, size in present.items()
        if why_not is None and size >= SMALLEST and is_safe(mapping, guards)
    }
    shared = sum(chosen.values())
    total = sum(run.size for run in known.runs if run.offset is not None)
    return Selection(
        mappings=tuple(chosen),
        shared_bytes=shared,
        copied_bytes=total - shared,
        why_not=why_not,
    )


def is_safe(mapping: Mapping, guards: Iterable[Mapping] = ()) -> bool:
    """Whether nothing is known of the mapping that would tell it from a private one of a file.

    One thing always would: after MADV_DONTNEED a page reads as the file again and not as zero. That is
    why allocators are looked at besides.
    """
    return (
        mapping.is_plain
        and not mapping.status & ~_STATUS
        and mapping.flags == _FLAGS
        and not mapping.advice & ~_ADVICE
        and bool(mapping.prot & PROT_READ)
        and not mapping.prot & PROT_EXEC
        and not any(g.start < mapping.end and mapping.start < g.end for g in guards)
    )


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

    def why_not(self, known: Memory, paths: abc.Mapping[int, str]) -> str | None:
        """Why the memory of a process cannot be shared, or None; `paths` are its files by their ID."""
        mapped = {m.file_id for m in known.mappings if m.prot & PROT_EXEC and m.file_id in paths}
        for path in sorted(paths[file_id] for file_id in mapped):
            if path not in self._known:
                self._known[path] = find_allocator(Path(path))
            if (found := self._known[path]) is not None:
                return f"{path} {found}"
        return None


def find_allocator(path: Path) -> str | None:
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
