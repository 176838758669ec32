"""cria kubernetes remap: rewrite a checkpoint archive for other ports and print the path of the new archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from cria.cli import output
from cria.cli.options import port_options
from cria.model.socket import Policy
from cria.network.requests import PortRequests

if TYPE_CHECKING:
    from cria.kubernetes.archive.contents import NeededFile
    from cria.kubernetes.archive.plan import ArchivePlan


@click.command
@click.argument("archive", type=click.Path(path_type=Path), required=False)
@port_options
@click.option(
    "-o",
    "new",
    metavar="NEW|oci:DIR[:TAG]",
    help="The new archive, or a directory for a container image of it.",
)
@click.option(
    "--elsewhere",
    "other_host",
    is_flag=True,
    help="The new archive is restored on another host: any port may be free there.",
)
@click.option(
    "--outside",
    type=click.Choice(get_args(Policy)),
    default="refuse",
    show_default=True,
    help="For connections with one end outside: refuse to remap, close them, or keep them.",
)
@click.option(
    "--clients",
    type=click.Choice(get_args(Policy)),
    default="close",
    show_default=True,
    help="For connections of clients: refuse to remap, close them, or keep them.",
)
@click.option("--dry-run", is_flag=True, help="Print the port plan and write nothing.")
@click.option("--explain", is_flag=True, help="Print the steps of a remap and exit.")
@output.json_option
@output.progress_option
def command(
    archive: Path | None,
    moves: tuple[str, ...],
    ports: str | None,
    addresses: tuple[str, ...],
    new: str | None,
    other_host: bool,
    outside: Policy,
    clients: Policy,
    dry_run: bool,
    explain: bool,
    as_json: bool,
    progress: str,
) -> None:
    """Rewrite the checkpoint ARCHIVE of a container so that it restores on other ports, and print the new path.

    ARCHIVE was written by the kubelet's checkpoint API, containerd, CRI-O or podman, and does not change. The new
    archive restores beside its original also where their pods share the network of a node. Without --ports all
    ports move.
    """
    from cria.cli.archive_documents import RemapDone
    from cria.kubernetes.archive.remap import REMAP_STEPS, plan_remap, remap

    if explain:
        click.echo("\n".join(step.title for step in REMAP_STEPS))
        return
    if archive is None:
        raise click.UsageError("Missing argument 'ARCHIVE'.")
    requests = PortRequests.parse(moves, mode=ports, addresses=addresses)
    if dry_run:
        plan = plan_remap(
            archive, ports=requests, other_host=other_host, outside=outside, clients=clients
        )
        _print_plan(plan, as_json=as_json)
        return
    if new is None:
        raise click.UsageError("Missing option '-o'.")
    result = remap(
        archive,
        new,
        ports=requests,
        other_host=other_host,
        outside=outside,
        clients=clients,
        listener=output.listener(progress),
    )
    if as_json:
        output.document(RemapDone.of(result))
        return
    if progress != "none":
        _note_moves(result.plan)
        _note_mentions(result.plan)
        _note_needs(result.needs)
    click.echo(result.path)


def _print_plan(plan: ArchivePlan, *, as_json: bool) -> None:
    if as_json:
        from cria.cli.archive_documents import RemapPlanned

        output.document(RemapPlanned.of(plan))
        return
    click.echo(plan.ports)
    _note_mentions(plan)


def _note_moves(plan: ArchivePlan) -> None:
    moved = ", ".join(f"{old} to {new}" for old, new in sorted(plan.ports.moved_ports.items()))
    closed = sum(move.closes for move in plan.ports)
    click.echo(f"ports moved: {moved or 'none'}", err=True)
    if closed:
        click.echo(f"connections closed: {closed}", err=True)


def _note_mentions(plan: ArchivePlan) -> None:
    for mention in plan.mentions:
        click.echo(f"note: {mention}; no restore reads it", err=True)


def _note_needs(needs: tuple[NeededFile, ...]) -> None:
    from cria.cli.archive_tables import needed_files

    if needs:
        table = needed_files(needs)
        click.echo(f"note: the archive does not hold all that a restore needs\n{table}", err=True)
