"""The ways in which cria can dump and restore; those that this cria does not offer are left out."""

from __future__ import annotations

import msgspec

from benchmarks import commands


class Mode(msgspec.Struct, frozen=True, kw_only=True):
    """Options of dump and of restore that make one way, and a verb that makes a checkpoint `ready` for it."""

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


def offered() -> tuple[Mode, ...]:
    """Those of MODES whose options the commands have."""
    dump, restore = commands.options("dump"), commands.options("restore")
    return tuple(m for m in MODES if dump.issuperset(m.dump) and restore.issuperset(m.restore))


def fleets(modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
    """Those that differ in what several clones at once cost."""
    return tuple(mode for mode in modes if not mode.dump and "--lazy" not in mode.restore)
