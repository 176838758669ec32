"""cria restore: parse, call cria.restore, print the url."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from cria.cli import output


@click.command
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("-p", "moves", multiple=True, metavar="OLD=NEW", help="Move a port; repeatable.")
@click.option(
    "--ports", metavar="keep|auto|fresh|offset:N", help="What happens to every other port."
)
@click.option(
    "--address", "addresses", multiple=True, metavar="OLD=NEW", help="Move an address; repeatable."
)
@click.option(
    "--wait", "wait_seconds", type=float, default=120.0, help="Seconds to wait until it is healthy."
)
@click.option(
    "--isolate",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Namespaces of its own: when something it needs is taken, always, never.",
)
@click.option("--dry-run", is_flag=True, help="Print the port plan, touch nothing.")
@click.option("--explain", is_flag=True, help="Print the steps and stop.")
@output.json_option
@output.progress_option
def command(
    checkpoint: Path | None,
    moves: tuple[str, ...],
    ports: str | None,
    addresses: tuple[str, ...],
    wait_seconds: float,
    isolate: Literal["auto", "always", "never"],
    dry_run: bool,
    explain: bool,
    as_json: bool,
    progress: str,
) -> None:
    """Bring back the engine of CHECKPOINT, healthy, and print its url.

    The checkpoint is not changed and can be restored again and again.
    """
    from cria.checkpoint import Checkpoint
    from cria.ports import Wishes
    from cria.restore import RESTORE_STEPS, restore

    if explain:
        click.echo("\n".join(step.name for step in RESTORE_STEPS))
        return
    if checkpoint is None:
        raise click.UsageError("Missing argument 'CHECKPOINT'.")
    wishes = Wishes.parse(moves, mode=ports, addresses=addresses)
    if dry_run:
        plan = Checkpoint.open(checkpoint).plan_ports(wishes)
        output.document(plan.to_json()) if as_json else click.echo(str(plan))
        return
    engine = restore(
        checkpoint,
        ports=wishes,
        wait_seconds=wait_seconds,
        isolate=isolate,
        listener=output.listener(progress),
    )
    if as_json:
        output.document(engine)
        return
    if progress != "none" and engine.timings is not None:
        click.echo(f"\n{output.timings_table(engine.timings)}", err=True)
    click.echo(engine.url or engine.pid)
