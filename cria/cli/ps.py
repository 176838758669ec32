"""cria ps: the engines on this host, and whether each could be dumped now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from cria.cli import output
from cria.cli.output import age, layout, middle

if TYPE_CHECKING:
    from cria.cli.documents import Listed
    from cria.model.inventory import Inventory


@click.command
@output.json_option
def command(as_json: bool) -> None:
    """List the engines on this host with model, layout, url, age and memory.

    READY says whether an engine could be dumped now; what stands in the way is listed below.
    """
    from cria.cli.documents import Listing, plain
    from cria.engine.inventory import discovery

    found = tuple(listed(root) for root in discovery.find_engines())
    if as_json:
        output.document(plain(Listing(engines=found)))
        return
    if not found:
        click.echo("no engine runs on this host", err=True)
        return
    click.echo(output.table(_HEAD, [_row(each) for each in found]))
    for each in found:
        for blocker in each.blockers:
            click.echo(f"{each.pid}: {blocker}")


def listed(root: int) -> Listed:
    """Return what `cria ps` tells of one engine; little where its owner is somebody else."""
    from cria.cli.documents import Listed
    from cria.engine.inventory import topology
    from cria.engine.inventory.collect import collect_inventory
    from cria.errors import PrivilegeMissing
    from cria.system.procfs import tree

    try:
        inventory = collect_inventory(root)
    except PrivilegeMissing as error:
        first, *others = tree(root)
        return Listed(
            pid=root,
            uid=first.uid,
            model=topology.served_model(first.command),
            topology=None,
            url=None,
            started=first.started,
            age_seconds=time.time() - first.started,
            processes=1 + len(others),
            memory_bytes=sum(p.memory.resident for p in (first, *others)),
            started_by_cria=False,
            ready=False,
            blockers=(f"{error.message}: {error.details}",),
        )
    return _known(inventory)


def _known(inventory: Inventory) -> Listed:
    from cria.cli.documents import Listed
    from cria.engine.inventory import discovery
    from cria.operations.checks.engine import ENGINE_CHECKS

    rows = [row for check in ENGINE_CHECKS for row in check(inventory) if row.level == "fail"]
    return Listed(
        pid=inventory.root.pid,
        uid=inventory.root.uid,
        model=inventory.topology.model,
        topology=inventory.topology,
        url=inventory.topology.url,
        started=inventory.root.started,
        age_seconds=max(0.0, inventory.taken - inventory.root.started),
        processes=len(inventory.processes),
        memory_bytes=sum(p.memory.resident for p in inventory.processes),
        started_by_cria=discovery.started_by_cria(inventory.root.pid),
        ready=not rows,
        blockers=tuple(f"{row.subject}: {row.value}" for row in rows),
    )


_HEAD = ("pid", "model", "layout", "url", "age", "memory", "ready")


def _row(each: Listed) -> tuple[str, ...]:
    return (
        str(each.pid),
        middle(each.model or "?", 28),
        layout(each.topology) if each.topology else "?",
        each.url or "?",
        age(each.age_seconds),
        output.size(each.memory_bytes),
        "yes" if each.ready else "no",
    )
