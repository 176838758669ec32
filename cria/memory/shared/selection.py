"""Select the mappings of a process that clones may share; a mapping that cria is not sure of is copied."""

from __future__ import annotations

import mmap
import re
import struct
from collections import abc
from collections.abc import Iterable
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
from cria.system import elf

SMALLEST = 256 << 10  # bytes; less is quicker to copy, and thread arenas are among it

# Only these bits may be set. Arenas of threads (glibc) and what jemalloc and mimalloc reserve have
# MAP_NORESERVE. Locked, huge and growing mappings have flags of their own. Stacks of threads have
# MADV_NOHUGEPAGE since Linux 6.7. A child gets no memory that has MADV_DONTFORK, or zeros for MADV_WIPEONFORK.
_STATUS = REGULAR | ANON_PRIVATE | HEAP
_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS
_ADVICE = 1 << 14 | 1 << 16  # MADV_HUGEPAGE, MADV_DONTDUMP


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The mappings of one process that are shared; `why_not` says why none is."""

    mappings: tuple[Mapping, ...] = ()
    shared_bytes: int = 0
    copied_bytes: int = 0
    why_not: str | None = None


def select_mappings(memory: Memory, why_not: str | None = None) -> Selection:
    """Select the mappings of one process that are safe to share and hold enough.

    Selects none where there is a reason `why_not`, such as an allocator that relies on anonymous memory.
    """
    stored_bytes: dict[Mapping, int] = {}
    for piece in zero_pages.split_by_mapping(memory):
        if piece.mapping is not None and piece.run.offset is not None:
            stored_bytes[piece.mapping] = stored_bytes.get(piece.mapping, 0) + piece.run.size
    guards = [mapping for mapping in memory.mappings if mapping.status & GUARD]
    selected = {
        mapping: size
        for mapping, size in stored_bytes.items()
        if why_not is None and size >= SMALLEST and is_safe(mapping, guards)
    }
    shared = sum(selected.values())
    total = sum(run.size for run in memory.runs if run.offset is not None)
    return Selection(
        mappings=tuple(selected),
        shared_bytes=shared,
        copied_bytes=total - shared,
        why_not=why_not,
    )


def is_safe(mapping: Mapping, guards: Iterable[Mapping] = ()) -> bool:
    """Whether a process cannot tell this mapping from a private mapping of a file.

    One difference remains: after MADV_DONTNEED a page reads as in the file again, and not as zero. That
    is why processes with certain allocators share nothing; see Allocators.
    """
    return (
        mapping.is_plain
        and not mapping.status & ~_STATUS
        and mapping.flags == _FLAGS
        and not mapping.advice & ~_ADVICE
        and bool(mapping.prot & PROT_READ)
        and not mapping.prot & PROT_EXEC
        and not any(guard.start < mapping.end and mapping.start < guard.end for guard in guards)
    )


# Allocators that give memory back with MADV_DONTNEED and rely on zeros afterwards: by the names of
# libraries, and by texts in their constants where they are linked into something else.
_LIBRARY = re.compile(
    r"(jemalloc|tcmalloc|mimalloc|rpmalloc|snmalloc|scudo|hoard|tbbmalloc|libjvm|libv8|libnode)"
)
_TEXTS = {
    b"<jemalloc>": "jemalloc",
    b"mimalloc": "mimalloc",
    b"tcmalloc": "tcmalloc",
    b"rpmalloc": "rpmalloc",
    b"snmalloc": "snmalloc",
    b"Scudo ERROR": "scudo",
}
_GO_SECTION = b".go.buildinfo"
# CPython contains mimalloc since 3.13, but uses it for all memory in the free-threaded build only.
_PYTHON, _FREE_THREADED = re.compile(r"(lib)?python3\."), re.compile(r"python3\.\d+t")


class Allocators:
    """Looks for allocators in mapped files, and reads each file once."""

    def __init__(self) -> None:
        self._reasons: dict[str, str | None] = {}

    def why_not(self, memory: Memory, paths: abc.Mapping[int, str]) -> str | None:
        """Return why the memory of a process cannot be shared, or None where it can.

        `paths` are the files of the process by their ID in files.img.
        """
        mapped = {
            mapping.file_id
            for mapping in memory.mappings
            if mapping.prot & PROT_EXEC and mapping.file_id in paths
        }
        for path in sorted(paths[file_id] for file_id in mapped):
            if path not in self._reasons:
                self._reasons[path] = find_allocator(Path(path))
            reason = self._reasons[path]
            if reason is not None:
                return f"{path} {reason}"
        return None


def find_allocator(path: Path) -> str | None:
    """Return what in the file forbids sharing, as a predicate of its path, or None."""
    if library := _LIBRARY.search(path.name):
        return f"is {library[1]}"
    try:
        with path.open("rb") as file:
            if file.read(len(elf.IDENT)) != elf.IDENT:
                return None
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
                return _find_in_elf(content, path.name)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (struct.error, IndexError):
        return "is not a complete ELF file"


def _find_in_elf(content: mmap.mmap, name: str) -> str | None:
    sections = dict(elf.sections(content)) or {b".rodata": (0, len(content))}
    if _GO_SECTION in sections:
        return "is written in Go"
    for section, (begin, end) in sections.items():
        if section.startswith(b".rodata"):
            for text, allocator in _TEXTS.items():
                if content.find(text, begin, end) >= 0 and not _is_unused(allocator, name):
                    return f"holds {allocator}"
    return None


def _is_unused(allocator: str, name: str) -> bool:
    is_usual_python = _PYTHON.match(name) and not _FREE_THREADED.search(name)
    return allocator == "mimalloc" and bool(is_usual_python)
