"""cria kubernetes node: parse, call cria.kubernetes.node.install, show what changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cria.cli import output

if TYPE_CHECKING:
    from cria.kubernetes.node.install import InstallPlan

Function = TypeVar("Function", bound=Callable[..., Any])


def place_options(function: Function) -> Function:
    """Which node, and where on it."""
    path = click.Path(path_type=Path)
    root = click.option("--root", type=path, default="/", help="Where its file system is mounted.")
    directory = click.option(
        "--directory", type=path, default="/opt/cria", help="Where on it the script is put."
    )
    return root(directory(function))


dry_run_option = click.option("--dry-run", is_flag=True, help="Show it and touch nothing.")


@click.group
def command() -> None:
    """Let every checkpoint of a container be taken at a still point of its engine.

    That is done by an action script, which the node's CRIU calls whoever asks for the checkpoint.
    """


@command.command
@place_options
@click.option(
    "--conf",
    "configurations",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A runtime's CRIU configuration; by default runc's, and crun's where it has one.",
)
@click.option(
    "--on-failure",
    type=click.Choice(["refuse", "pass"]),
    default="refuse",
    help="What becomes of a checkpoint when there is no still point.",
)
@click.option(
    "--inflight",
    type=click.Choice(["keep", "drain", "abort"]),
    default="keep",
    help="What becomes of requests in flight.",
)
@click.option("--seconds", type=float, default=60.0, help="How long a still point may take.")
@click.option(
    "--network-lock",
    type=click.Choice(["iptables", "nftables", "skip"]),
    help="How CRIU keeps packets away; by default iptables where the node has it.",
)
@click.option("--python", type=click.Path(path_type=Path), help="The node's Python, 3.9 or newer.")
@dry_run_option
@output.json_option
def install(
    root: Path,
    directory: Path,
    configurations: tuple[Path, ...],
    on_failure: Any,
    inflight: Any,
    seconds: float,
    network_lock: Any,
    python: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put the action script on a node and name it in its runtime's CRIU configuration.

    What is in the configuration stays, and wins. Nothing needs to be started anew. The same command
    again brings it up to date.
    """
    from cria.kubernetes.node import install as node

    plan = node.install(
        node.Node(root=root, directory=directory),
        node.Settings(on_failure=on_failure, inflight=inflight, seconds=seconds),
        configurations=configurations,
        network_lock=network_lock,
        python=python,
    )
    _carry_out(plan, dry_run=dry_run, as_json=as_json)
    if plan.node.program("criu") is None:
        click.echo(f"warning: no CRIU below {root}: its runtime can checkpoint nothing", err=True)


@command.command
@place_options
@dry_run_option
@output.json_option
def remove(root: Path, directory: Path, dry_run: bool, as_json: bool) -> None:
    """Take the action script off a node, and leave its files as they were before."""
    from cria.kubernetes.node import install as node

    plan = node.remove(node.Node(root=root, directory=directory))
    _carry_out(plan, dry_run=dry_run, as_json=as_json)


@command.command
@place_options
@output.json_option
def show(root: Path, directory: Path, as_json: bool) -> None:
    """Say what is installed on a node. The exit status is 3 when nothing, or something old, is."""
    from cria.kubernetes.node import install as node

    found = node.status(node.Node(root=root, directory=directory))
    if as_json:
        output.document(found)
    else:
        settings = found.settings
        rows = [
            ("installed", "yes" if found.installed else "no"),
            ("script", found.script or "none"),
            ("up to date", "yes" if found.up_to_date else "no: cria kubernetes node install"),
            ("configuration", ", ".join(found.configurations) or "names no action script of cria"),
            ("no still point", settings.on_failure if settings else "-"),
            ("requests in flight", settings.inflight if settings else "-"),
            ("seconds for it", f"{settings.seconds:g}" if settings else "-"),
            ("CRIU", found.criu or "none: the runtime can checkpoint nothing"),
        ]
        click.echo(output.properties(rows))
    if not (found.installed and found.up_to_date):
        sys.exit(3)


def _carry_out(plan: InstallPlan, *, dry_run: bool, as_json: bool) -> None:
    """The change is shown before it is made; then stdout has the paths that changed."""
    from cria.cli.results import NodeChange, NodeChanged
    from cria.kubernetes.node.install import diff

    for change in plan.changes:
        click.echo(f"{change.action} {change.path}", err=True)
        click.echo(diff(change, plan.node), err=True, nl=False)
    if not plan.changes:
        click.echo("nothing to change", err=True)
    if not dry_run:
        plan.carry_out()
    if as_json:
        changes = tuple(
            NodeChange(path=str(each.path), action=each.action, diff=diff(each, plan.node))
            for each in plan.changes
        )
        output.document(NodeChanged(root=str(plan.node.root), changes=changes, dry_run=dry_run))
        return
    for change in plan.changes:
        click.echo(change.path)
