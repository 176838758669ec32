"""What verbs print: progress on stderr, timings, tables and properties."""

from __future__ import annotations

import json

import pytest

from cria.cli import output
from cria.events import Progress, StepTiming, Timings, Warned
from cria.operation import Step, run_steps


def fail(_state: None) -> None:
    raise RuntimeError("no space")


STEPS = (
    Step[None]("write-images", "write memory images", lambda _: 3 << 20, undo=lambda _: None),
    Step[None]("save-files", "save files", fail),
)


def run(style: str) -> None:
    with pytest.raises(RuntimeError):
        run_steps("dump", STEPS, None, listener=output.listener(style))


def test_json_lines_carry_the_id_and_the_title_of_a_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("json")

    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.err.splitlines()]
    assert shown.out == ""
    assert [(line["type"], line["step"], line["title"]) for line in lines] == [
        ("step_started", "write-images", "write memory images"),
        ("step_finished", "write-images", "write memory images"),
        ("step_started", "save-files", "save files"),
        ("step_failed", "save-files", "save files"),
        ("step_undone", "write-images", "write memory images"),
    ]
    assert lines[1]["bytes"] == 3 << 20


def test_lines_show_titles_and_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    run("lines")

    written, failed, undone = capsys.readouterr().err.splitlines()
    assert written.endswith("s  write memory images  (3 MiB)")
    assert failed.endswith("s  save files: failed")
    assert undone.endswith("undone: write memory images")


def test_a_live_line_names_the_running_step_and_its_bytes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printer = output.ProgressPrinter(live=True)
    run_steps("dump", STEPS[:1], None, listener=printer)
    printer(Progress(step="write-images", done_bytes=1 << 20))

    shown = capsys.readouterr().err
    assert "write memory images ..." in shown
    assert shown.endswith("s  write memory images 1 MiB")


def test_a_warning_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    output.listener("lines")(Warned(message="a clone could not be restored"))

    assert capsys.readouterr().err == "warning: a clone could not be restored\n"


def test_progress_none_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run("none")

    assert capsys.readouterr() == ("", "")


def test_timings_add_up_to_the_wall_time() -> None:
    steps = (
        StepTiming(id="write-images", name="write memory images", seconds=1.0),
        StepTiming(id="check-images", name="check images", seconds=0.0001),
    )
    timings = Timings(wall_seconds=1.5, unaccounted_seconds=0.4999, steps=steps)

    assert output.timings_table(timings).splitlines() == [
        "    1.000 s  write memory images",
        "    0.500 s  everything else",
        "    1.500 s  in all",
    ]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("1", "a long model name", "x"), ("4711", "", "y")]

    assert output.table(("pid", "model", ""), rows).splitlines() == [
        "PID   MODEL",
        "1     a long model name  x",
        "4711                     y",
    ]


def test_the_values_of_properties_stand_below_each_other() -> None:
    assert output.properties([("url", "http://h:1"), ("checkpoint", "2 GiB")]).splitlines() == [
        "url         http://h:1",
        "checkpoint  2 GiB",
    ]
