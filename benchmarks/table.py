"""The figures of a benchmark as tables, for a terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.document import Bench, Floor, Measured, Spread, StepShare, Way
from cria.cli import output
from cria.errors import UsageError
from cria.model.units import size

WAYS_HEAD = ("", "restore to first token", "restore", "dump", "pause", "on disk")
CLONES_HEAD = ("clones", "one", "at once", "memory of one", "of all")
FLOORS_HEAD = ("floor", "limit", "measured", "")
STEPS_HEAD = ("whose", "milliseconds", "in pause", "step")
GROWTH_HEAD = (
    *("engine", "cold start", "restore: CRIU alone", "cria"),
    *("pause: CRIU alone", "cria", "on disk: CRIU alone", "cria"),
)


def read(path: Path) -> Bench:
    """Read a document that `cria bench --json` printed. Raises UsageError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Bench)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is no document of cria bench", details=str(error)) from error


def table(bench: Bench) -> str:
    """Return all tables, those of each engine together."""
    blocks = [block for measured in bench.engines for block in _blocks(measured)]
    if len(bench.engines) > 1:
        blocks.append(output.table(GROWTH_HEAD, growth_rows(bench)))
    return "\n\n".join([*blocks, circumstances(bench)])


def markdown(bench: Bench) -> list[str]:
    """Return the tables of the first engine for the documentation, and how the figures grow with others."""
    first, *more = bench.engines
    parts = [
        f"{first.engine}; {circumstances(bench)}.",
        _markdown_table(WAYS_HEAD, way_rows(first)),
        _markdown_table(FLOORS_HEAD, floor_rows(first)),
    ]
    if first.clones:
        parts.append(_markdown_table(CLONES_HEAD, clone_rows(first)))
    parts.append(own_time(first.ways[1]) + ".")
    if more:
        parts.append(_markdown_table(GROWTH_HEAD, growth_rows(bench)))
    return parts


def circumstances(bench: Bench) -> str:
    """Return the machine, the programs, the number of rounds and the time of a benchmark."""
    machine = bench.machine
    memory = f"{machine.memory_bytes / (1 << 30):.0f} GiB"
    return (
        f"{machine.processors} processors ({machine.cpu}), {memory}, Linux {machine.kernel}, CRIU "
        f"{bench.criu_version}, cria {bench.cria_version}; {bench.rounds} round(s), {bench.created}, "
        f"{bench.seconds / 60:.1f} minutes"
    )


def way_rows(measured: Measured) -> list[tuple[str, ...]]:
    """Return a row for the cold start, then one for each way."""
    return [
        ("cold start", _seconds(measured.cold), *[""] * (len(WAYS_HEAD) - 2)),
        *(
            (
                way.name,
                _seconds(way.first_token),
                _seconds(way.restore),
                _seconds(way.dump) or (f"ready in {_seconds(way.ready)}" if way.ready else ""),
                _seconds(way.pause),
                _size(way.bytes),
            )
            for way in measured.ways
        ),
    ]


def clone_rows(measured: Measured) -> list[tuple[str, ...]]:
    """Return a row for each mode in which clones were restored."""
    return [
        (
            clones.name,
            _seconds(clones.one),
            f"{clones.count}: {_seconds(clones.all)}",
            _size(clones.one_bytes),
            f"{clones.count}: {_size(clones.all_bytes)}",
        )
        for clones in measured.clones
    ]


def floor_rows(measured: Measured) -> list[tuple[str, str, str, str]]:
    """Return a row for each floor: its limit, what was measured, whether it is met."""
    verdicts = {True: "met", False: "missed", None: ""}
    return [
        (floor.what, _limit(floor), _figure(floor, floor.measured), verdicts[floor.met])
        for floor in measured.floors
    ]


def step_rows(steps: Sequence[StepShare]) -> list[tuple[str, str, str, str]]:
    """Return a row for each step that takes a millisecond or more."""
    return [
        (
            step.owner,
            _milliseconds(step.seconds),
            "yes" if step.in_pause else "",
            step.name,
        )
        for step in steps
        if step.seconds.median >= 0.0005
    ]


def growth_rows(bench: Bench) -> list[tuple[str, ...]]:
    """Return a row for each engine, which compares CRIU alone with cria without options."""
    return [
        (
            str(measured.engine),
            _seconds(measured.cold),
            *(_seconds(way.restore) for way in measured.ways[:2]),
            *(_seconds(way.pause) for way in measured.ways[:2]),
            *(_size(way.bytes) for way in measured.ways[:2]),
        )
        for measured in bench.engines
    ]


def own_time(way: Way) -> str:
    """Return the time that cria itself takes in a dump, in its pause and in a restore."""
    figures = {
        "of a dump": way.own_dump,
        "in its pause": way.own_pause,
        "of a restore": way.own_restore,
    }
    parts = [f"{_milliseconds(spread)} ms {what}" for what, spread in figures.items() if spread]
    return f"cria's own time: {', '.join(parts)}"


def _blocks(measured: Measured) -> Iterator[str]:
    yield str(measured.engine)
    yield output.table(WAYS_HEAD, way_rows(measured))
    if measured.clones:
        yield output.table(CLONES_HEAD, clone_rows(measured))
    plain = measured.ways[1]
    yield own_time(plain)
    for operation, steps in (("dump", plain.dump_steps), ("restore", plain.restore_steps)):
        yield f"{operation}:\n{output.table(STEPS_HEAD, step_rows(steps))}"
    yield output.table(FLOORS_HEAD, floor_rows(measured))


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(spread: Spread | None) -> str:
    """Return the median and the range; nothing where nothing was measured."""
    if spread is None:
        return ""
    if spread.count == 1:
        return f"{spread.median:.2f} s"
    return f"{spread.median:.2f} s ({spread.least:.2f}-{spread.most:.2f})"


def _milliseconds(spread: Spread) -> str:
    return f"{spread.median * 1000:.0f}"


def _size(spread: Spread | None) -> str:
    return size(int(spread.median)) if spread else ""


def _limit(floor: Floor) -> str:
    return f"{'at least' if floor.at_least else 'at most'} {_figure(floor, floor.limit)}"


def _figure(floor: Floor, value: float | None) -> str:
    if value is None:
        return "not measured"
    if floor.unit == "s":
        return f"{value * 1000:.0f} ms"
    return f"{value:.0f} x" if floor.at_least else f"{value:.2f} x"
