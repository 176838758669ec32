"""Which mappings of a process clones may share: pure, and where it is not sure the answer is no."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cria.images.memory import (
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
from cria.pages import lean

SMALLEST = 256 << 10  # what is less is cheaper copied, and thread areas are among it

# Only these may be set. What glibc reserves for the arena of a thread has MAP_NORESERVE, and so has what
# jemalloc and mimalloc take; locked, huge and growing mappings have bits of their own; stacks of threads
# have been advised MADV_NOHUGEPAGE since Linux 6.7; MADV_DONTFORK and MADV_WIPEONFORK mean what they say.
_STATUS = REGULAR | ANON_PRIVATE | HEAP
_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS
_ADVICE = 1 << 14 | 1 << 16  # MADV_HUGEPAGE, MADV_DONTDUMP


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What of one process is shared; `why_not` says why nothing is."""

    mappings: tuple[Mapping, ...] = ()
    shared_bytes: int = 0
    copied_bytes: int = 0
    why_not: str | None = None


def choose(known: Memory, why_not: str | None = None) -> Choice:
    """The mappings of one process that are safe to share, and worth it.

    With a reason `why_not`, such as an allocator that counts on anonymous memory, none is.
    """
    present: dict[Mapping, int] = {}
    for piece in lean.pieces(known):
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
    return Choice(
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
