"""What a benchmark measured: the document of `cria bench --json`, from which the documentation is generated."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

Owner = Literal["own", "criu", "engine", "disk"]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """The median of the values of all rounds, and their range."""

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
    """A step of an operation: who spends its time, and whether it is part of the engine's pause."""

    name: str
    owner: Owner
    in_pause: bool
    seconds: Spread


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to dump and restore the engine. Figures are in seconds; `bytes` is the size on the disk.

    `ready` is the time to prepare a checkpoint for this way, once and after the dump. `dump` and
    `restore` are the times of the whole commands. `first_token` is the time from the start of the
    restore to the first token. `pause` is the longest gap between two tokens that a client sees while
    the engine is dumped and goes on, minus the median gap. `own_dump` and `own_restore` are the time
    that neither CRIU nor the engine nor the disk spends; `own_pause` is the part of it in the pause.
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
    """Several clones of a checkpoint at once compared with one: seconds, and memory (Pss) in bytes."""

    name: str
    count: int
    one: Spread
    all: Spread
    one_bytes: Spread
    all_bytes: Spread


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that has to be reached; `measured` is None where it was not measured."""

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
    """An engine: its KV cache, its ranks and its weights in MB. All are None for the user's own command."""

    kv_gib: float | None = None
    ranks: int | None = None
    model_mb: int | None = None

    def __str__(self) -> str:
        if self.kv_gib is None:
            return "the engine that was named"
        return f"KV cache {self.kv_gib:g} GiB, {self.ranks} rank(s), model {self.model_mb} MB"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one engine. `cold` is the time from its start to its first token.

    The first of the `ways` is CRIU alone. `troubles` say why figures are missing.
    """

    engine: Engine
    cold: Spread | None
    ways: tuple[Way, ...]
    clones: tuple[Clones, ...]
    floors: tuple[Floor, ...]
    troubles: tuple[str, ...] = ()


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that was measured on."""

    cpu: str
    processors: int
    memory_bytes: int
    kernel: str


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark, measured in one run on one machine. `created` is a time in RFC 3339, UTC."""

    created: str
    cria_version: str
    criu_version: str
    machine: Machine
    rounds: int
    seconds: float
    engines: tuple[Measured, ...]
