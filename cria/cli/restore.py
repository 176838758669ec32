"""cria restore: restore the engine of a checkpoint, or several clones of it, and print their urls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cria.checkpoint.handle import Checkpoint
from cria.cli import output
from cria.cli.options import Spelling, port_options, request_options
from cria.cli.results import Planned, Restored
from cria.gpu import devices
from cria.network.requests import PortRequests
from cria.requests import ReplicasRequest, RestoreRequest

if TYPE_CHECKING:
    from cria.engine.handle import Engine
    from cria.network.plan import PortPlan

DONE_WITH_WARNINGS = 3


@click.command
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@port_options
@request_options(
    ReplicasRequest,
    without=("checkpoint", "ports"),
    spellings={
        "wait_seconds": Spelling(names=("--wait",)),
        "gpus": Spelling(names=("--gpu",), metavar="OLD=NEW"),
        "share_in": Spelling(metavar="DIR"),
        "hooks": Spelling(names=("--hook",), metavar="PATH|NAME"),
    },
)
@click.option("--dry-run", is_flag=True, help="Print the port plan and change nothing.")
@click.option("--explain", is_flag=True, help="Print the steps of a restore and exit.")
@output.json_option
@output.progress_option
def command(
    checkpoint: Path | None,
    moves: tuple[str, ...],
    ports: str | None,
    addresses: tuple[str, ...],
    gpus: tuple[str, ...],
    replicas: int | None,
    all_or_none: bool,
    dry_run: bool,
    explain: bool,
    as_json: bool,
    progress: str,
    **options: Any,  # the other fields of RestoreRequest
) -> None:
    """Restore the engine of CHECKPOINT and print its url once the engine is healthy.

    A restore does not change the checkpoint, which can be restored any number of times.
    """
    from cria.operations.restore.steps import every_step, restore

    if explain:
        click.echo("\n".join(step.title for step in every_step()))
        return
    if checkpoint is None:
        raise click.UsageError("Missing argument 'CHECKPOINT'.")
    # Clones with no port named must not all ask for the ports of the original.
    mode = ports or ("auto" if replicas and not moves else None)
    options |= {
        "ports": PortRequests.parse(moves, mode=mode, addresses=addresses),
        "gpus": devices.parse_gpu_map(gpus),
        "listener": output.listener(progress),
    }
    opened = Checkpoint.open(checkpoint)
    if dry_run:
        _plan(opened, RestoreRequest(opened, **options), replicas or 1, as_json=as_json)
    elif replicas is None:
        engines: tuple[Engine, ...] = (restore(RestoreRequest(opened, **options)),)
        _show(engines, as_json=as_json, with_timings=progress != "none")
    else:
        from cria.operations.replicas import restore_replicas  # threads, which one engine needs not

        request = ReplicasRequest(opened, replicas=replicas, all_or_none=all_or_none, **options)
        engines = restore_replicas(request)
        _show(engines, as_json=as_json, with_timings=False)
        if len(engines) < replicas:
            raise SystemExit(DONE_WITH_WARNINGS)


def _plan(checkpoint: Checkpoint, request: RestoreRequest, replicas: int, *, as_json: bool) -> None:
    from cria.operations.replicas import plans_for

    plans = plans_for(checkpoint, request, replicas)
    if as_json:
        output.document(Planned.of(plans))
    else:
        click.echo(_plans_text(plans))


def _plans_text(plans: tuple[PortPlan, ...]) -> str:
    if len(plans) == 1:
        return str(plans[0])
    return "\n\n".join(f"clone {number}\n{plan}" for number, plan in enumerate(plans, start=1))


def _show(engines: tuple[Engine, ...], *, as_json: bool, with_timings: bool) -> None:
    if as_json:
        output.document(Restored.of(engines))
        return
    first = engines[0]
    if with_timings and first.timings is not None:
        click.echo(f"\n{output.timings_table(first.timings)}", err=True)
    if first.shared_memory is not None:
        click.echo(first.shared_memory.summary, err=True)
    for engine in engines:
        click.echo(engine.url or engine.pid)
