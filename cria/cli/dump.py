"""cria dump: dump an engine into a checkpoint and print its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cria.cli import output as out
from cria.cli.options import Spelling, request_options
from cria.cli.results import Dumped, WouldDump
from cria.model.units import size
from cria.requests import DumpRequest


@click.command
@click.argument("target", type=int, required=False, metavar="[PID]")
@request_options(
    DumpRequest,
    without=("target",),
    spellings={
        "output": Spelling(names=("-o", "--output"), default=None),
        "hooks": Spelling(names=("--hook",), metavar="PATH|NAME"),
    },
)
@click.option("--dry-run", is_flag=True, help="Check everything and change nothing.")
@click.option("--explain", is_flag=True, help="Print the steps of a dump and exit.")
@out.json_option
@out.progress_option
def command(
    target: int | None,
    output: Path | None,
    dry_run: bool,
    explain: bool,
    as_json: bool,
    progress: str,
    **options: Any,  # the other fields of DumpRequest
) -> None:
    """Dump an engine into a new checkpoint directory and print its path.

    PID is any process of the engine. Without it the engine is found by --port, or is the only one on
    this host. The engine ends after the dump, unless --leave-running is given. If the dump fails, the
    engine runs on and no checkpoint is left behind.
    """
    from cria.operations.dump.steps import DUMP_STEPS

    if explain:
        click.echo("\n".join(step.title for step in DUMP_STEPS))
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    request = DumpRequest(target, output, listener=out.listener(progress), **options)
    if dry_run:
        _check(request, output, as_json=as_json)
    else:
        _dump(request, as_json=as_json, with_timings=progress != "none")


def _check(request: DumpRequest, output: Path, *, as_json: bool) -> None:
    from cria.operations.dump.steps import plan

    inventory = plan(request)
    root = inventory.root.pid
    if as_json:
        out.document(WouldDump(engine=root, checkpoint=str(output)))
        return
    click.echo(
        f"engine {root}: {len(inventory.processes)} processes, "
        f"{len(inventory.listeners())} listeners; it can be dumped to {output}"
    )


def _dump(request: DumpRequest, *, as_json: bool, with_timings: bool) -> None:
    from cria.operations.dump.steps import dump

    checkpoint = dump(request)
    if as_json:
        out.document(
            Dumped(
                checkpoint=str(checkpoint.path),
                bytes=checkpoint.size_bytes,
                processes=len(checkpoint.manifest.inventory.processes),
                timings=checkpoint.timings,
            )
        )
        return
    if with_timings:
        click.echo(f"\n{out.timings_table(checkpoint.timings)}", err=True)
        click.echo(f"checkpoint of {size(checkpoint.size_bytes)}", err=True)
    click.echo(checkpoint.path)
