"""Measure a cold start, CRIU alone and cria in each of its modes, on one machine and in one run."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import psutil

from benchmarks import engine, modes
from benchmarks.document import Bench, Clones, Engine, Machine, Measured, Spread, Way
from benchmarks.floors import floors
from benchmarks.modes import Mode
from benchmarks.owners import DUMP, RESTORE, own_seconds, own_seconds_in_pause, shares
from benchmarks.rounds import RAW, Measurements, Round, Say
from cria.criu import program
from cria.demo import ENVIRONMENT
from cria.errors import CriaError
from cria.model.manifest import now
from cria.model.version import VERSION
from cria.system import processes
from cria.system.host import model_and_features

__all__ = ["Bench", "Plan", "bench"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: each of the `engines`, or the user's `command` in their place, in several `rounds`.

    `clones` is the number of clones that are restored at once; 0 for none.
    """

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
    """Carry out `plan` in `directory` (by default a temporary one) and leave nothing behind.

    Each round measures everything in turn, so that a change on the machine affects all ways alike. An
    engine that fails is not measured further, and its document says why. Raises a CriaError where
    nothing at all could be measured.
    """
    start, criu = time.monotonic(), program.find()
    criu_version = ".".join(map(str, program.require(criu)))
    if directory is not None:
        Path(directory).mkdir(parents=True, exist_ok=True)
    measured: list[Measured] = []
    with (
        tempfile.TemporaryDirectory(prefix="cria-bench-", dir=directory) as scratch,
        processes.orphans_adopted(),
    ):
        available = modes.available()
        for subject in plan.subjects:
            measurements = Measurements()
            try:
                _run_rounds(
                    subject,
                    measurements,
                    plan=plan,
                    modes_to_measure=available,
                    directory=Path(scratch).resolve(),
                    criu=criu,
                    say=say,
                )
            except CriaError as error:
                if not measured and not measurements.cold:
                    raise
                measurements.troubles.append(f"{subject}: {error.message}: {error.details}")
            measured.append(_summarize(subject, measurements, available, plan.clones))
    return Bench(
        created=now(),
        cria_version=VERSION,
        criu_version=criu_version,
        machine=_machine(),
        rounds=plan.rounds,
        seconds=time.monotonic() - start,
        engines=tuple(measured),
    )


def _run_rounds(
    subject: Engine,
    measurements: Measurements,
    *,
    plan: Plan,
    modes_to_measure: tuple[Mode, ...],
    directory: Path,
    criu: Path,
    say: Say,
) -> None:
    command = plan.command or tuple(engine.command_for(subject, directory))
    for number in range(plan.rounds):
        Round(
            command=command,
            environment={} if plan.command else ENVIRONMENT,
            directory=directory / "round",
            criu=criu,
            modes=modes_to_measure,
            clone_modes=modes.for_clones(modes_to_measure) if plan.clones else (),
            clones=plan.clones,
            measurements=measurements,
            say=partial(_say_where, say, f"{subject}, round {number + 1} of {plan.rounds}"),
        ).run(number)


def _say_where(say: Say, where: str, line: str) -> None:
    say(f"{where}: {line}")


def _summarize(
    subject: Engine, measurements: Measurements, measured_modes: Sequence[Mode], count: int
) -> Measured:
    cold = Spread.of(measurements.cold)
    ways = tuple(_way(name, measurements) for name in (RAW, *(m.name for m in measured_modes)))
    clones = tuple(_clones(measurements, count))
    return Measured(
        engine=subject,
        cold=cold,
        ways=ways,
        clones=clones,
        floors=floors(cold, ways, clones),
        troubles=tuple(dict.fromkeys(measurements.troubles)),
    )


def _way(name: str, measurements: Measurements) -> Way:
    figures = {figure: Spread.of(values) for figure, values in measurements.figures[name].items()}
    dumps, restores = measurements.dumps[name], measurements.restores[name]
    return Way(
        name=name,
        own_dump=Spread.of(own_seconds(timings, DUMP) for timings in dumps),
        own_pause=Spread.of(own_seconds_in_pause(timings, DUMP) for timings in dumps),
        own_restore=Spread.of(own_seconds(timings, RESTORE) for timings in restores),
        dump_steps=shares(dumps, DUMP),
        restore_steps=shares(restores, RESTORE),
        **figures,
    )


def _clones(measurements: Measurements, count: int) -> Iterator[Clones]:
    for name, figures in measurements.clones.items():
        spreads = {figure: Spread.over(values) for figure, values in figures.items() if values}
        if {"one", "all", "one_bytes", "all_bytes"} <= spreads.keys():
            yield Clones(name=name, count=count, **spreads)


def _machine() -> Machine:
    return Machine(
        cpu=model_and_features()[0],
        processors=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
    )
