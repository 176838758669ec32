"""What a benchmark makes of its measurements: spreads, owners of the time, floors, tables and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from jsonschema import validate

from benchmarks.document import Bench, Clones, Engine, Floor, Machine, Measured, Spread, Way
from benchmarks.floors import floors
from benchmarks.owners import (
    DUMP,
    RESTORE,
    Ownership,
    own_seconds,
    own_seconds_in_pause,
    shares,
)
from benchmarks.picture import draw
from benchmarks.table import read, table
from cria.cli.schemas import schema_text
from cria.errors import UsageError
from cria.events import StepTiming, Timings
from cria.operation import Step
from cria.operations.dump.steps import DUMP_STEPS
from cria.operations.restore.steps import every_step


def spread(*values: float) -> Spread:
    return Spread.over(values)


def timings(unaccounted: float = 0.0, **seconds: float) -> Timings:
    steps = tuple(
        StepTiming(id=name.replace("_", "-"), name=name.replace("_", " "), seconds=value)
        for name, value in seconds.items()
    )
    wall = unaccounted + sum(step.seconds for step in steps)
    return Timings(wall_seconds=wall, unaccounted_seconds=unaccounted, steps=steps)


def way(name: str, seconds: float, size: float) -> Way:
    return Way(
        name=name,
        dump=spread(seconds),
        pause=spread(seconds / 2),
        bytes=spread(size),
        restore=spread(seconds),
        first_token=spread(seconds + 0.1),
        own_restore=spread(0.05),
        own_pause=spread(0.2),
        dump_steps=shares([timings(find_criu=0.01, write_images=seconds)], DUMP),
    )


@pytest.fixture
def bench() -> Bench:
    ways = (way("CRIU alone", 4, 4e9), way("cria", 1, 2e9), way("cria, compressed", 1.5, 8e8))
    clones = (
        Clones(
            name="cria",
            count=4,
            one=spread(1),
            all=spread(3),
            one_bytes=spread(1e9),
            all_bytes=spread(4e9),
        ),
    )
    cold = spread(40, 42, 60)
    measured = Measured(
        engine=Engine(kv_gib=1, ranks=1, model_mb=10),
        cold=cold,
        ways=ways,
        clones=clones,
        floors=floors(cold, ways, clones),
    )
    return Bench(
        created="2026-01-01T00:00:00+00:00",
        cria_version="0",
        criu_version="4.3",
        machine=Machine(cpu="a CPU", processors=2, memory_bytes=24 << 30, kernel="6"),
        rounds=3,
        seconds=300,
        engines=(measured,),
    )


def floor(bench: Bench, word: str) -> Floor:
    return next(floor for floor in bench.engines[0].floors if word in floor.what)


def test_one_slow_round_does_not_move_the_median() -> None:
    assert spread(40, 42, 600).median == 42
    assert (spread(40, 42, 600).least, spread(40, 42, 600).most) == (40, 600)
    assert Spread.of([]) is None


def test_own_time_is_what_neither_criu_nor_engine_nor_disk_spends() -> None:
    run = timings(
        find_criu=0.01,
        quiesce_engine=0.2,
        write_images=1.0,
        save_files=0.03,
        resume_engine=0.004,
        digest_parts=2.0,
        unaccounted=0.001,
    )

    assert own_seconds(run, DUMP) == pytest.approx(0.01 + 0.03 + 0.004 + 0.001)
    assert own_seconds_in_pause(run, DUMP) == pytest.approx(0.03 + 0.004)


def test_compression_is_not_counted_as_own_time() -> None:
    run = timings(save_files=0.03, compress_pages=3.0)

    assert own_seconds(run, DUMP) == pytest.approx(0.03)


def test_the_pause_of_a_dump_that_ends_the_engine_is_measured_too() -> None:
    """Such a dump has no step "resume-engine"."""
    run = timings(quiesce_engine=0.2, save_files=0.03, check_images=0.01, end_engine=0.5)

    assert own_seconds_in_pause(run, DUMP) == pytest.approx(0.03 + 0.01)
    (quiesce, *_, end) = shares([run], DUMP)
    assert (quiesce.in_pause, end.in_pause) == (True, False)


def test_a_resume_is_cria_s_in_a_dump_and_the_engine_s_in_a_restore() -> None:
    assert (DUMP.owner("resume-engine"), RESTORE.owner("resume-engine")) == ("own", "engine")


@pytest.mark.parametrize(("ownership", "steps"), [(DUMP, DUMP_STEPS), (RESTORE, every_step())])
def test_every_step_that_has_an_owner_exists(
    ownership: Ownership, steps: tuple[Step[Any], ...]
) -> None:
    """An id that no step has would silently count that step's time as cria's own."""
    assert set(ownership.owners) | ownership.pause <= {step.id for step in steps}


def test_a_floor_is_met_or_missed_by_the_medians_of_the_same_run(bench: Bench) -> None:
    assert floor(bench, "cold start").measured == pytest.approx(42 / 1.1)
    assert floor(bench, "cold start").met is False
    assert floor(bench, "restore, against").met is True
    assert floor(bench, "compressed").met is False
    assert floor(bench, "in a restore").met is True
    assert floor(bench, "in the pause").met is False
    assert floor(bench, "clones at once").met is False


def test_a_restore_is_measured_by_the_fastest_way(bench: Bench) -> None:
    ways = (*bench.engines[0].ways, way("cria, shared memory", 0.4, 2e9))

    compared = floors(spread(40), ways, ())

    assert compared[0].what.startswith("cria, shared memory: ")
    assert compared[0].measured == pytest.approx(40 / 0.5)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    unmeasured = floors(spread(40), (Way(name="CRIU alone"), Way(name="cria")), ())

    assert {floor.met for floor in unmeasured} == {None}


def test_the_table_shows_each_figure_and_each_floor(bench: Bench) -> None:
    shown = table(bench)

    for text in ("cold start", "42.00 s (40.00-60.00)", "CRIU alone", "missed", "met", "3.73 GiB"):
        assert text in shown


def test_the_picture_has_a_bar_for_each_figure_as_long_as_its_value(bench: Bench) -> None:
    svg = "{http://www.w3.org/2000/svg}"
    bars = ElementTree.fromstring(draw(bench)).findall(f"{svg}rect")

    widths = [float(bar.attrib["width"]) for bar in bars]
    assert len(widths) == 4 + 3 + 3
    assert widths[0] == max(widths[:4]) and widths[1] > widths[2]


def test_a_stored_document_matches_its_schema_and_can_be_read(bench: Bench, tmp_path: Path) -> None:
    stored = tmp_path / "bench.json"
    stored.write_bytes(msgspec.json.encode(bench))

    validate(json.loads(stored.read_text()), json.loads(schema_text(Bench)))
    assert read(stored) == bench


def test_another_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")

    with pytest.raises(UsageError, match="no document of cria bench"):
        read(tmp_path / "other.json")
