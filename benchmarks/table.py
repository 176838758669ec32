"""The figures of a benchmark as tables, for a terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.document import Bench, Floor, Measured, Spread, StepShare, Way
from cria.cli import output
from cria.errors import UsageError

HEAD = ("", "restore to first token", "restore", "dump", "pause", "on disk")


def read(path: Path) -> Bench:
    """A document that `cria bench --json` printed. Raises UsageError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Bench)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is no document of cria bench", details=str(error)) from error


def table(bench: Bench) -> str:
    """Everything, one block for each engine."""
    blocks = [block for engine in bench.engines for block in _blocks(engine)]
    if len(bench.engines) > 1:
        blocks.append(output.table(GROWTH_HEAD, growth_rows(bench)))
    return "\n\n".join([*blocks, where(bench)])


def where(bench: Bench) -> str:
    """On what machine, and how often."""
    machine = bench.machine
    memory = f"{machine.memory_bytes / (1 << 30):.0f} GiB"
    return (
        f"{machine.processors} processors ({machine.cpu}), {memory}, Linux {machine.kernel}, CRIU "
        f"{bench.criu_version}, cria {bench.cria_version}; {bench.rounds} round(s), {bench.created}, "
        f"{bench.seconds / 60:.1f} minutes"
    )


def markdown(bench: Bench) -> list[str]:
    """The tables of the first engine for a page, where it was measured, and how it grows."""
    first, *more = bench.engines
    parts = [f"{first.engine}; {where(bench)}."]
    parts += [_markdown(HEAD, ways_rows(first)), _markdown(FLOORS_HEAD, floor_rows(first))]
    if first.clones:
        parts.append(_markdown(CLONES_HEAD, clone_rows(first)))
    parts.append(own_line(first.ways[1]) + ".")
    if more:
        parts.append(_markdown(GROWTH_HEAD, growth_rows(bench)))
    return parts


def growth_rows(bench: Bench) -> list[tuple[str, ...]]:
    """Each engine with what CRIU alone and cria without options take for it."""
    return [
        (
            str(each.engine),
            _seconds(each.cold),
            *(_seconds(way.restore) for way in each.ways[:2]),
            *(_seconds(way.pause) for way in each.ways[:2]),
            *(output.size(int(way.bytes.median)) if way.bytes else "" for way in each.ways[:2]),
        )
        for each in bench.engines
    ]


def ways_rows(measured: Measured) -> list[tuple[str, ...]]:
    """A row for each way; the cold start is the first."""
    rows = [("cold start", _seconds(measured.cold), *[""] * (len(HEAD) - 2))]
    rows += [
        (
            way.name,
            _seconds(way.first_token),
            _seconds(way.restore),
            _seconds(way.dump) or (f"ready in {_seconds(way.ready)}" if way.ready else ""),
            _seconds(way.pause),
            output.size(int(way.bytes.median)) if way.bytes else "",
        )
        for way in measured.ways
    ]
    return rows


def floor_rows(measured: Measured) -> list[tuple[str, str, str, str]]:
    """Each floor: what is asked, what was measured, met or missed."""
    return [(f.what, _limit(f), _figure(f, f.measured), _verdict(f)) for f in measured.floors]


def clone_rows(measured: Measured) -> list[tuple[str, ...]]:
    return [
        (
            each.name,
            _seconds(each.one),
            f"{each.count}: {_seconds(each.all)}",
            output.size(int(each.one_bytes.median)),
            f"{each.count}: {output.size(int(each.all_bytes.median))}",
        )
        for each in measured.clones
    ]


GROWTH_HEAD = (
    *("engine", "cold start", "restore: CRIU alone", "cria"),
    *("pause: CRIU alone", "cria", "on disk: CRIU alone", "cria"),
)
CLONES_HEAD = ("clones", "one", "at once", "memory of one", "of all")
FLOORS_HEAD = ("floor", "limit", "measured", "")
STEPS_HEAD = ("whose", "milliseconds", "stands still", "step")


def step_rows(steps: Sequence[StepShare]) -> list[tuple[str, str, str, str]]:
    """The steps that take a millisecond or more."""
    return [
        (s.owner, _milliseconds(s.seconds), "yes" if s.in_pause else "", s.name)
        for s in steps
        if s.seconds.median >= 0.0005
    ]


def own_line(way: Way) -> str:
    """What cria itself takes."""
    parts = {
        "of a dump": way.own_dump,
        "while the engine stands still": way.own_pause,
        "of a restore": way.own_restore,
    }
    told = [f"{_milliseconds(spread)} ms {what}" for what, spread in parts.items() if spread]
    return f"cria's own time: {', '.join(told)}"


def _blocks(measured: Measured) -> Iterator[str]:
    yield f"{measured.engine}"
    yield output.table(HEAD, ways_rows(measured))
    if measured.clones:
        yield output.table(CLONES_HEAD, clone_rows(measured))
    plain = measured.ways[1]
    yield own_line(plain)
    for what, steps in (("dump", plain.dump_steps), ("restore", plain.restore_steps)):
        yield f"{what}:\n{output.table(STEPS_HEAD, step_rows(steps))}"
    yield output.table(FLOORS_HEAD, floor_rows(measured))


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(spread: Spread | None) -> str:
    """The median, and how far the values lie apart."""
    if spread is None:
        return ""
    if spread.count == 1:
        return f"{spread.median:.2f} s"
    return f"{spread.median:.2f} s ({spread.least:.2f}-{spread.most:.2f})"


def _milliseconds(spread: Spread) -> str:
    return f"{spread.median * 1000:.0f}"


def _limit(floor: Floor) -> str:
    return f"{'at least' if floor.at_least else 'at most'} {_figure(floor, floor.limit)}"


def _figure(floor: Floor, value: float | None) -> str:
    if value is None:
        return "not measured"
    if floor.unit == "s":
        return f"{value * 1000:.0f} ms"
    return f"{value:.0f} x" if floor.at_least else f"{value:.2f} x"


def _verdict(floor: Floor) -> str:
    return {True: "met", False: "missed", None: ""}[floor.met]
