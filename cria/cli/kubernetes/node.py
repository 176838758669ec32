"""cria kubernetes node: install CRIU's action script on a node, remove it, or show what is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cria.cli import output

if TYPE_CHECKING:
    from cria.kubernetes.node.install import InstallPlan, InstallStatus, NetworkLock, OnFailure
    from cria.model.manifest import Inflight

Function = TypeVar("Function", bound=Callable[..., Any])
NOT_UP_TO_DATE = 3


def node_options(function: Function) -> Function:
    path = click.Path(path_type=Path)
    root = click.option(
        "--root",
        type=path,
        default="/",
        show_default=True,
        help="Where the node's file system is mounted.",
    )
    directory = click.option(
        "--directory",
        type=path,
        default="/opt/cria",
        show_default=True,
        help="The node's directory for the script.",
    )
    return root(directory(function))


dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print the changes and change nothing."
)


@click.group
def command() -> None:
    """Quiesce the engine of a container at every checkpoint that this node takes.

    An action script does it, which the node's CRIU runs whatever program asks for the checkpoint.
    """


@command.command
@node_options
@click.option(
    "--conf",
    "configurations",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A runtime's CRIU configuration.  [default: runc's, and crun's where it has one]",
)
@click.option(
    "--on-failure",
    type=click.Choice(["refuse", "pass"]),
    default="refuse",
    show_default=True,
    help="Where an engine cannot be quiesced, refuse its checkpoint or dump the engine as it is.",
)
@click.option(
    "--inflight",
    type=click.Choice(["keep", "drain", "abort"]),
    default="keep",
    show_default=True,
    help="Requests in flight are kept and go on later, are waited for, or are aborted.",
)
@click.option(
    "--seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="Seconds to wait for the engine to be quiesced.",
)
@click.option(
    "--network-lock",
    type=click.Choice(["iptables", "nftables", "skip"]),
    help="How CRIU blocks packets during a dump.  [default: iptables where the node has it, else nftables]",
)
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    help="The node's Python, 3.9 or newer.  [default: its python3]",
)
@dry_run_option
@output.json_option
def install(
    root: Path,
    directory: Path,
    configurations: tuple[Path, ...],
    on_failure: OnFailure,
    inflight: Inflight,
    seconds: float,
    network_lock: NetworkLock | None,
    python: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Install or update the action script on a node, and name it in the CRIU configuration of its runtime.

    Options that the configuration sets already are kept. No program has to be restarted.
    """
    from cria.kubernetes.node.install import Node, Settings, plan_install

    plan = plan_install(
        Node(root=root, directory=directory),
        Settings(on_failure=on_failure, inflight=inflight, seconds=seconds),
        configurations=configurations,
        network_lock=network_lock,
        python=python,
    )
    _apply(plan, dry_run=dry_run, as_json=as_json)
    if plan.node.find_program("criu") is None:
        click.echo(
            f"warning: no CRIU below {root}: the runtime cannot checkpoint containers", err=True
        )


@command.command
@node_options
@dry_run_option
@output.json_option
def remove(root: Path, directory: Path, dry_run: bool, as_json: bool) -> None:
    """Remove the action script from a node, and restore its files as they were before."""
    from cria.kubernetes.node.install import Node, plan_removal

    plan = plan_removal(Node(root=root, directory=directory))
    _apply(plan, dry_run=dry_run, as_json=as_json)


@command.command
@node_options
@output.json_option
def show(root: Path, directory: Path, as_json: bool) -> None:
    """Show what is installed on a node. The exit status is 3 if nothing is installed, or an older script."""
    from cria.kubernetes.node.install import Node, status

    installed = status(Node(root=root, directory=directory))
    output.document(installed) if as_json else click.echo(status_lines(installed))
    if not (installed.installed and installed.up_to_date):
        sys.exit(NOT_UP_TO_DATE)


def status_lines(installed: InstallStatus) -> str:
    """Return one fact about an installation on each line."""
    settings = installed.settings
    configurations = ", ".join(installed.configurations) or "names no action script of cria"
    return output.properties(
        [
            ("installed", "yes" if installed.installed else "no"),
            ("script", installed.script or "none"),
            ("up to date", "yes" if installed.up_to_date else "no: cria kubernetes node install"),
            ("configuration", configurations),
            ("on failure", settings.on_failure if settings else "-"),
            ("requests in flight", settings.inflight if settings else "-"),
            ("seconds to quiesce", f"{settings.seconds:g}" if settings else "-"),
            ("CRIU", installed.criu or "none: the runtime cannot checkpoint containers"),
        ]
    )


def _apply(plan: InstallPlan, *, dry_run: bool, as_json: bool) -> None:
    """Show the changes on stderr, make them, and print the paths that changed on stdout."""
    from cria.cli.results import NodeChange, NodeChanged
    from cria.kubernetes.node.install import diff

    for change in plan.changes:
        click.echo(f"{change.action} {change.path}", err=True)
        click.echo(diff(change, plan.node), err=True, nl=False)
    if not plan.changes:
        click.echo("nothing to change", err=True)
    if not dry_run:
        plan.apply()
    if as_json:
        changes = tuple(
            NodeChange(path=str(change.path), action=change.action, diff=diff(change, plan.node))
            for change in plan.changes
        )
        output.document(NodeChanged(root=str(plan.node.root), changes=changes, dry_run=dry_run))
        return
    for change in plan.changes:
        click.echo(change.path)
