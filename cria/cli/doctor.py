"""cria doctor: check a host, an engine or a checkpoint, and show each finding with its remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
@click.option("--port", type=int, help="Find the engine by the port of its HTTP API.")
@click.option("--any-process", is_flag=True, help="Accept a process tree that is no vLLM engine.")
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="Check the disk of the directory that a checkpoint would be written to.",
)
@click.option("--report", is_flag=True, help="Print a bug report without secrets.")
@output.json_option
def command(
    target: str | None,
    port: int | None,
    any_process: bool,
    directory: Path,
    report: bool,
    as_json: bool,
) -> None:
    """Check whether this host is ready, an engine can be dumped, or a checkpoint would restore here.

    Each finding is ok, warn, fail or skip, with a remedy where there is one. The exit status is 0, or
    the one that a dump or restore would end with because of the first failed finding.
    """
    from cria.operations.checks import report as reports

    diagnosis = _diagnose(target, port, any_process, directory)
    if as_json:
        output.document(reports.document(diagnosis))
    elif report:
        click.echo(reports.bug_report(diagnosis))
    else:
        click.echo("\n".join(_lines(diagnosis)))
        click.echo(f"\n{reports.verdict(diagnosis)}")
    sys.exit(diagnosis.exit_status)


def _diagnose(
    target: str | None, port: int | None, any_process: bool, directory: Path
) -> Diagnosis:
    from cria.operations.checks import diagnosis

    if target is None and port is None:
        return diagnosis.host(directory)
    if target is None or target.isdecimal():
        pid = None if target is None else int(target)
        return diagnosis.engine(pid, port=port, any_process=any_process, place=directory)
    return diagnosis.checkpoint(target)


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    first = True
    for group, rows in groupby(diagnosis.rows, key=lambda row: row.group):
        if not first:
            yield ""
        first = False
        yield group
        for row in rows:
            yield from _row_lines(row)


def _row_lines(row: Row) -> Iterator[str]:
    level = click.style(f"{row.level:4}", fg=_COLOURS[row.level])
    yield f"  {level}  {row.subject}: {row.told()}"
    if row.remedy:
        yield f"        fix: {row.remedy}"
