"""Measure on one machine, in one run: a cold start, CRIU alone, and cria in each of its modes."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.document import Bench, Clones, Engine, Machine, Measured, Spread, Way
from benchmarks.floors import floors
from benchmarks.modes import Mode, fleets, offered
from benchmarks.owners import DUMP, RESTORE, own_seconds, own_seconds_in_pause, shares
from benchmarks.rounds import RAW, Log, Round, Say
from cria.errors import CriaError

__all__ = ["Bench", "Plan", "bench"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: `rounds` of each engine. A `command` of the user's takes the place of `engines`."""

    rounds: int = 3
    engines: tuple[Engine, ...] = (Engine(kv_gib=1, ranks=1, model_mb=10),)
    command: tuple[str, ...] = ()
    clones: int = 4

    @property
    def subjects(self) -> tuple[Engine, ...]:
        return (Engine(),) if self.command else self.engines


def bench(
    plan: Plan,
    directory: str | os.PathLike[str] | None = None,
    *,
    say: Say = lambda _line: None,
) -> Bench:
    """Measure what `plan` says in `directory` (a temporary one by default), and leave nothing behind.

    Each round begins with a cold start and takes all ways by turns, so that what changes on the machine
    meanwhile changes for all. An engine that fails is measured no further, and its trouble told; raises a
    CriaError where that leaves nothing.
    """
    from cria.criu import program
    from cria.model.manifest import now
    from cria.model.version import VERSION
    from cria.system import processes

    begin, criu = time.monotonic(), program.find()
    version = ".".join(map(str, program.require(criu)))
    if directory is not None:
        Path(directory).mkdir(parents=True, exist_ok=True)
    engines: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="cria-bench-", dir=directory) as scratch:
        place, modes = Path(scratch).resolve(), offered()
        with processes.orphans_adopted():
            for engine in plan.subjects:
                log = Log()
                try:
                    _measure(engine, log, plan=plan, modes=modes, place=place, criu=criu, say=say)
                except CriaError as error:
                    if not engines and not log.cold:
                        raise
                    log.troubles.append(f"{engine}: {error.message}: {error.details}")
                engines.append(_measured(engine, log, modes, plan.clones))
    return Bench(
        created=now(),
        cria_version=VERSION,
        criu_version=version,
        machine=_machine(),
        rounds=plan.rounds,
        seconds=time.monotonic() - begin,
        engines=tuple(engines),
    )


def _measure(
    engine: Engine,
    log: Log,
    *,
    plan: Plan,
    modes: tuple[Mode, ...],
    place: Path,
    criu: Path,
    say: Say,
) -> None:
    from benchmarks import subject
    from cria.demo import ENVIRONMENT

    command = plan.command or tuple(subject.command_for(engine, place))
    for turn in range(plan.rounds):
        Round(
            command=command,
            environment={} if plan.command else ENVIRONMENT,
            place=place / "round",
            criu=criu,
            modes=modes,
            fleets=fleets(modes) if plan.clones else (),
            clones=plan.clones,
            log=log,
            say=partial(_say, say, f"{engine}, round {turn + 1} of {plan.rounds}"),
        ).run(turn)


def _say(say: Say, where: str, line: str) -> None:
    say(f"{where}: {line}")


def _measured(engine: Engine, log: Log, modes: Sequence[Mode], count: int) -> Measured:
    cold = Spread.of(log.cold)
    ways = tuple(_way(name, log) for name in (RAW, *(mode.name for mode in modes)))
    clones = tuple(_clones(log, count))
    return Measured(
        engine=engine,
        cold=cold,
        ways=ways,
        clones=clones,
        floors=floors(cold, ways, clones),
        troubles=tuple(dict.fromkeys(log.troubles)),
    )


def _way(name: str, log: Log) -> Way:
    figures = {figure: Spread.of(values) for figure, values in log.figures[name].items()}
    dumps, restores = log.dumps[name], log.restores[name]
    return Way(
        name=name,
        own_dump=Spread.of(own_seconds(timings, DUMP) for timings in dumps),
        own_pause=Spread.of(own_seconds_in_pause(timings, DUMP) for timings in dumps),
        own_restore=Spread.of(own_seconds(timings, RESTORE) for timings in restores),
        dump_steps=shares(dumps, DUMP),
        restore_steps=shares(restores, RESTORE),
        **figures,
    )


def _clones(log: Log, count: int) -> Iterator[Clones]:
    for name, values in log.clones.items():
        spreads = {figure: Spread.of(each) for figure, each in values.items()}
        known = {figure: spread for figure, spread in spreads.items() if spread is not None}
        if {"one", "all", "one_bytes", "all_bytes"} <= set(known):
            yield Clones(name=name, count=count, **known)


def _machine() -> Machine:
    from cria.system.host import model_and_features

    lines = Path("/proc/meminfo").read_text().splitlines()
    memory = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemTotal:"))
    return Machine(
        cpu=model_and_features()[0],
        processors=len(os.sched_getaffinity(0)),
        memory_bytes=memory,
        kernel=platform.release(),
    )
