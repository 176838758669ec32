"""The modes in which cria can dump and restore an engine."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from benchmarks import cria_commands


class Mode(msgspec.Struct, frozen=True, kw_only=True):
    """Options of dump and restore that are measured together; the verb `ready` prepares the checkpoint."""

    name: str
    dump: tuple[str, ...] = ()
    ready: str | None = None
    restore: tuple[str, ...] = ()


PLAIN = Mode(name="cria")
MODES = (
    PLAIN,
    Mode(name="cria, compressed", dump=("--compress",)),
    Mode(name="cria, lazy", restore=("--lazy",)),
    Mode(name="cria, shared memory", ready="share", restore=("--share-memory",)),
)


def available() -> tuple[Mode, ...]:
    """Return the modes whose options this version of cria has."""
    dump, restore = cria_commands.options("dump"), cria_commands.options("restore")
    return tuple(m for m in MODES if dump.issuperset(m.dump) and restore.issuperset(m.restore))


def for_clones(modes: Iterable[Mode]) -> tuple[Mode, ...]:
    """Return the modes in which several clones at once are measured."""
    return tuple(mode for mode in modes if not mode.dump and "--lazy" not in mode.restore)
