"""cria kubernetes remap: parse, call cria.kubernetes.archive.remap, print where the new archive is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from cria.cli import output
from cria.model.socket import Policy

if TYPE_CHECKING:
    from cria.kubernetes.archive.contents import NeededFile
    from cria.kubernetes.archive.plan import ArchivePlan


@click.command
@click.argument("archive", type=click.Path(path_type=Path), required=False)
@click.option("-p", "moves", multiple=True, metavar="OLD=NEW", help="Move a port; repeatable.")
@click.option(
    "--ports",
    metavar="keep|auto|fresh|offset:N",
    help="What happens to every other port; fresh where nothing is said: all of them move.",
)
@click.option(
    "--address", "addresses", multiple=True, metavar="OLD=NEW", help="Move an address; repeatable."
)
@click.option(
    "-o",
    "new",
    metavar="NEW|oci:DIR[:TAG]",
    help="The new archive; or a directory that becomes a container image of it.",
)
@click.option(
    "--elsewhere",
    is_flag=True,
    help="It is restored on another host: do not look at which ports are free on this one.",
)
@click.option(
    "--outside",
    type=click.Choice(get_args(Policy)),
    default="refuse",
    help="Connections with one end outside: refuse to remap, close them, keep them.",
)
@click.option(
    "--clients",
    type=click.Choice(get_args(Policy)),
    default="close",
    help="The same for clients of its listeners.",
)
@click.option("--dry-run", is_flag=True, help="Print the port plan, write nothing.")
@click.option("--explain", is_flag=True, help="Print the steps and stop.")
@output.json_option
@output.progress_option
def command(
    archive: Path | None,
    moves: tuple[str, ...],
    ports: str | None,
    addresses: tuple[str, ...],
    new: str | None,
    elsewhere: bool,
    outside: str,
    clients: str,
    dry_run: bool,
    explain: bool,
    as_json: bool,
    progress: str,
) -> None:
    """Write the checkpoint ARCHIVE of a container anew, so that it restores on other ports.

    Beside the original, on a node whose network its pod shares, the copy then collides with nothing.
    ARCHIVE is what the kubelet's checkpoint API, containerd, CRI-O or podman wrote. It is not changed.
    """
    from cria.cli.archive_documents import RemapDone
    from cria.kubernetes.archive.remap import REMAP_STEPS, plan_remap, remap
    from cria.network.requests import PortRequests

    if explain:
        click.echo("\n".join(step.title for step in REMAP_STEPS))
        return
    if archive is None:
        raise click.UsageError("Missing argument 'ARCHIVE'.")
    wishes = PortRequests.parse(moves, mode=ports, addresses=addresses)
    asked: dict[str, Any] = {"ports": wishes, "elsewhere": elsewhere}
    asked |= {"outside": outside, "clients": clients}
    if dry_run:
        _show_plan(plan_remap(archive, **asked), as_json=as_json)
        return
    if new is None:
        raise click.UsageError("Missing option '-o'.")
    done = remap(archive, new, **asked, listener=output.listener(progress))
    if as_json:
        output.document(RemapDone.of(done))
        return
    if progress != "none":
        _tell(done.plan)
        _tell_needs(done.needs)
    click.echo(done.path)


def _show_plan(plan: ArchivePlan, *, as_json: bool) -> None:
    if as_json:
        from cria.cli.archive_documents import RemapPlanned

        output.document(RemapPlanned.of(plan))
        return
    click.echo(plan.ports)
    _tell(plan, shown=True)


def _tell(plan: ArchivePlan, *, shown: bool = False) -> None:
    """What a user has to know beside the result."""
    if not shown:
        moved = ", ".join(f"{old} to {new}" for old, new in sorted(plan.ports.moved_ports.items()))
        closed = sum(move.closes for move in plan.ports)
        click.echo(f"ports moved: {moved or 'none'}", err=True)
        click.echo(f"connections closed: {closed}", err=True) if closed else None
    for mention in plan.mentions:
        click.echo(f"note: {mention}; no restore reads it", err=True)


def _tell_needs(needs: tuple[NeededFile, ...]) -> None:
    from cria.cli.archive_tables import needed_files

    if needs:
        click.echo(
            f"note: it does not hold all that a restore needs\n{needed_files(needs)}", err=True
        )
