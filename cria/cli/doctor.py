"""cria doctor: parse, examine, show the findings with their remedies."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cria.cli import output

if TYPE_CHECKING:
    from cria.operations.checks.diagnosis import Diagnosis
    from cria.operations.checks.rows import Row

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": None}


@click.command
@click.argument("target", required=False, metavar="[PID|CHECKPOINT]")
@click.option("--port", type=int, help="Name the engine by its HTTP port instead of a PID.")
@click.option("--any-process", is_flag=True, help="Take a process tree that is no vLLM engine.")
@click.option(
    "-o",
    "--output",
    "place",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="Where a checkpoint would be written; its disk is measured.",
)
@click.option("--report", is_flag=True, help="Text for a bug report; secrets are left out.")
@output.json_option
def command(
    target: str | None,
    port: int | None,
    any_process: bool,
    place: Path,
    report: bool,
    as_json: bool,
) -> None:
    """Can this host do it? Can this engine be dumped? Would this checkpoint restore here and now?

    Each finding is ok, warn, fail or skip, with a remedy. The exit status is 0, or the one that the
    first failed finding would end a dump or a restore with.
    """
    from cria.operations.checks import report as reports

    diagnosis = _examine(target, port, any_process, place)
    if as_json:
        output.document(reports.document(diagnosis))
    elif report:
        click.echo(reports.bug_report(diagnosis))
    else:
        click.echo("\n".join(_lines(diagnosis)))
        click.echo(f"\n{reports.verdict(diagnosis)}")
    sys.exit(diagnosis.exit_status)


def _examine(target: str | None, port: int | None, any_process: bool, place: Path) -> Diagnosis:
    from cria.operations.checks import diagnosis as examine

    if target is None and port is None:
        return examine.host(place)
    if target is None or target.isdecimal():
        pid = None if target is None else int(target)
        return examine.engine(pid, port=port, any_process=any_process, place=place)
    return examine.checkpoint(target)


def _lines(diagnosis: Diagnosis) -> list[str]:
    lines: list[str] = []
    for group, rows in groupby(diagnosis.rows, key=lambda row: row.group):
        lines += ["", group] if lines else [group]
        for row in rows:
            lines += _row(row)
    return lines


def _row(row: Row) -> list[str]:
    mark = click.style(f"{row.level:4}", fg=_COLOURS[row.level])
    lines = [f"  {mark}  {row.subject}: {row.told()}"]
    return [*lines, f"        fix: {row.remedy}"] if row.remedy else lines
