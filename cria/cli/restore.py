"""cria restore: parse, call cria.restore, print the url."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cria.cli import output

if TYPE_CHECKING:
    from cria.engine.handle import Engine
    from cria.model.socket import Policy
    from cria.network.plan import PortPlan

DONE_WITH_WARNINGS = 3
POLICIES = ("refuse", "close", "keep")


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
    "--outside",
    type=click.Choice(POLICIES),
    default="refuse",
    help="Connections with one end outside: refuse to restore, close them, keep them.",
)
@click.option(
    "--clients",
    type=click.Choice(POLICIES),
    default="close",
    help="The same for clients of the HTTP API.",
)
@click.option(
    "--wait", "wait_seconds", type=float, default=120.0, help="Seconds to wait until it is healthy."
)
@click.option(
    "--isolate",
    type=click.Choice(["auto", "always", "never", "net"]),
    default="auto",
    help="Namespaces of its own: when something it needs is taken, always, never; net: its network too.",
)
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="OLD=NEW",
    help="A GPU for another, by UUID; repeatable.",
)
@click.option(
    "--gpu-seconds", type=float, default=300.0, help="Seconds that a copy to a GPU may take."
)
@click.option("--share-memory", is_flag=True, help="Clones hold what they do not change once.")
@click.option(
    "--share-in",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The same, with its files in DIR and not beside CHECKPOINT.",
)
@click.option("--lazy", is_flag=True, help="Let it run while its memory still arrives.")
@click.option("--replicas", type=click.IntRange(min=1), help="Restore so many clones at once.")
@click.option("--all-or-none", is_flag=True, help="If one clone fails, take all down.")
@click.option("--no-canary", is_flag=True, help="Do not compare what it generates with before.")
@click.option("--dry-run", is_flag=True, help="Print the port plan, touch nothing.")
@click.option("--explain", is_flag=True, help="Print the steps and stop.")
@output.hook_options
@output.json_option
@output.progress_option
def command(
    checkpoint: Path | None,
    moves: tuple[str, ...],
    ports: str | None,
    addresses: tuple[str, ...],
    outside: Policy,
    clients: Policy,
    wait_seconds: float,
    isolate: Literal["auto", "always", "never", "net"],
    gpus: tuple[str, ...],
    gpu_seconds: float,
    share_memory: bool,
    share_in: Path | None,
    lazy: bool,
    replicas: int | None,
    all_or_none: bool,
    no_canary: bool,
    dry_run: bool,
    explain: bool,
    hooks: tuple[str, ...],
    hook_seconds: float,
    as_json: bool,
    progress: str,
) -> None:
    """Bring back the engine of CHECKPOINT, healthy, and print its url.

    The checkpoint is not changed and can be restored again and again.
    """
    from cria.checkpoint.handle import Checkpoint
    from cria.gpu import devices
    from cria.network.requests import Wishes
    from cria.operations.restore.steps import restore
    from cria.requests import ReplicasRequest, RestoreRequest

    if explain:
        from cria.operations.restore.steps import RESTORE_STEPS

        click.echo("\n".join(step.title for step in RESTORE_STEPS))
        return
    if checkpoint is None:
        raise click.UsageError("Missing argument 'CHECKPOINT'.")
    # As from Python: clones of which nothing is said shall not want the same ports.
    mode = ports or ("auto" if replicas and not moves else None)
    wishes = Wishes.parse(moves, mode=mode, addresses=addresses)
    exchanged = devices.parse(gpus)
    opened = Checkpoint.open(checkpoint)
    if dry_run:
        from cria.operations.replicas import plan_fleet

        plans = plan_fleet(opened, replicas or 1, wishes, outside=outside, clients=clients)
        _show_plans(plans, as_json=as_json)
        return
    tell = output.listener(progress)
    if replicas is None:
        engines: tuple[Engine, ...] = (
            restore(
                RestoreRequest(
                    opened,
                    ports=wishes,
                    wait_seconds=wait_seconds,
                    isolate=isolate,
                    outside=outside,
                    clients=clients,
                    canary=not no_canary,
                    lazy=lazy,
                    gpus=exchanged,
                    gpu_seconds=gpu_seconds,
                    share_memory=share_memory,
                    share_in=share_in,
                    hooks=hooks,
                    hook_seconds=hook_seconds,
                    listener=tell,
                )
            ),
        )
    else:
        from cria.operations.replicas import restore_replicas

        engines = restore_replicas(
            ReplicasRequest(
                opened,
                replicas=replicas,
                ports=wishes,
                wait_seconds=wait_seconds,
                outside=outside,
                clients=clients,
                isolate="net" if isolate == "net" else "always",
                all_or_none=all_or_none,
                canary=not no_canary,
                lazy=lazy,
                gpus=exchanged,
                gpu_seconds=gpu_seconds,
                share_memory=share_memory,
                share_in=share_in,
                hooks=hooks,
                hook_seconds=hook_seconds,
                listener=tell,
            )
        )
    _show(engines, as_json=as_json, timings=progress != "none" and replicas is None)
    if replicas is not None and len(engines) < replicas:
        raise SystemExit(DONE_WITH_WARNINGS)


def _show_plans(plans: tuple[PortPlan, ...], *, as_json: bool) -> None:
    if as_json:
        from cria.cli.results import Planned

        output.document(Planned.of(plans))
    elif len(plans) == 1:
        click.echo(plans[0])
    else:
        click.echo("\n\n".join(f"clone {n}\n{plan}" for n, plan in enumerate(plans, start=1)))


def _show(engines: tuple[Engine, ...], *, as_json: bool, timings: bool) -> None:
    if as_json:
        from cria.cli.results import Restored

        output.document(Restored.of(engines))
        return
    if timings and engines[0].timings is not None:
        click.echo(f"\n{output.timings_table(engines[0].timings)}", err=True)
    if (shared := engines[0].shared_memory) is not None:
        click.echo(shared.told, err=True)
    for engine in engines:
        click.echo(engine.url or engine.pid)
