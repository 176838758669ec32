"""What a benchmark has measured: the document that `cria bench --json` prints and the docs are made from."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

Owner = Literal["own", "criu", "engine", "disk"]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """The values of all rounds in one number, and how far they lie apart."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def over(cls, values: Collection[float]) -> Spread:
        """Return the spread of one or more values."""
        return cls(
            median=statistics.median(values),
            least=min(values),
            most=max(values),
            count=len(values),
        )

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the spread of the values, or None where nothing was measured."""
        measured = list(values)
        return cls.over(measured) if measured else None


class StepShare(msgspec.Struct, frozen=True, kw_only=True):
    """A step of an operation: who spends its time, and whether the engine stands still meanwhile."""

    name: str
    owner: Owner
    in_pause: bool
    seconds: Spread


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to dump the engine and bring it back; all figures in seconds, `bytes` on the disk.

    `ready` is what makes a checkpoint ready for this way, once, after the dump and while nobody waits.
    `dump` and `restore` are the whole command, as a user waits for it. `first_token` is from the start
    of the restore to the first token. `pause` is the longest gap between two tokens that a client sees
    while the engine is dumped and lives on, less the usual gap. The `own_...` are cria's time outside
    CRIU, the engine and the disk: `own_pause` that part of it during which the engine stands still.
    """

    name: str
    dump: Spread | None = None
    ready: Spread | None = None
    pause: Spread | None = None
    bytes: Spread | None = None
    restore: Spread | None = None
    first_token: Spread | None = None
    own_dump: Spread | None = None
    own_pause: Spread | None = None
    own_restore: Spread | None = None
    dump_steps: tuple[StepShare, ...] = ()
    restore_steps: tuple[StepShare, ...] = ()


class Clones(msgspec.Struct, frozen=True, kw_only=True):
    """Several clones of one checkpoint at once against one: seconds, and the memory they take (Pss, bytes)."""

    name: str
    count: int
    one: Spread
    all: Spread
    one_bytes: Spread
    all_bytes: Spread


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that has to be reached; `measured` is None where nothing was measured for it."""

    what: str
    limit: float
    at_least: bool
    unit: str
    measured: float | None

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured: the engine's KV cache, its ranks, and its weights in MB; None for a command of the user's."""

    kv_gib: float | None = None
    ranks: int | None = None
    model_mb: int | None = None

    def __str__(self) -> str:
        if self.kv_gib is None:
            return "the engine that was named"
        return f"KV cache {self.kv_gib:g} GiB, {self.ranks} rank(s), model {self.model_mb} MB"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One engine: `cold` is from its start to its first token. The first of the `ways` is CRIU alone.

    `troubles` say why figures are missing.
    """

    engine: Engine
    cold: Spread | None
    ways: tuple[Way, ...]
    clones: tuple[Clones, ...]
    floors: tuple[Floor, ...]
    troubles: tuple[str, ...] = ()


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    cpu: str
    processors: int
    memory_bytes: int
    kernel: str


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """A whole benchmark, measured in one run on one machine. `created` is RFC 3339 in UTC."""

    created: str
    cria_version: str
    criu_version: str
    machine: Machine
    rounds: int
    seconds: float
    engines: tuple[Measured, ...]
