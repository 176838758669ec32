"""cria ps: list the engines of this host, and whether each can be dumped now."""

from __future__ import annotations

import time

import click

from cria.cli import output
from cria.cli.inventory_documents import Listed, Listing, flatten_roles
from cria.cli.inventory_tables import layout
from cria.engine.inventory import collect, discovery, topology
from cria.errors import PrivilegeMissing
from cria.model.inventory import Inventory
from cria.model.units import age, size
from cria.system.procfs import tree

_HEAD = ("pid", "model", "layout", "url", "age", "memory", "ready")


@click.command
@output.json_option
def command(as_json: bool) -> None:
    """List the engines of this host with model, layout, url, age and memory.

    READY says whether an engine can be dumped now; below the table stands what prevents it.
    """
    engines = tuple(list_engine(root) for root in discovery.find_engines())
    if as_json:
        output.document(flatten_roles(Listing(engines=engines)))
        return
    if not engines:
        click.echo("no engine runs on this host", err=True)
        return
    click.echo(output.table(_HEAD, [_row(engine) for engine in engines]))
    for engine in engines:
        for blocker in engine.blockers:
            click.echo(f"{engine.pid}: {blocker}")


def list_engine(root: int) -> Listed:
    """Return what `cria ps` shows of one engine: little where it belongs to another user."""
    try:
        inventory = collect.collect_inventory(root)
    except PrivilegeMissing as error:
        return _without_privilege(root, error)
    return _with_checks(inventory)


def _without_privilege(root: int, error: PrivilegeMissing) -> Listed:
    processes = tree(root)
    first = processes[0]
    return Listed(
        pid=root,
        uid=first.uid,
        model=topology.served_model(first.command),
        topology=None,
        url=None,
        started=first.started,
        age_seconds=time.time() - first.started,
        processes=len(processes),
        memory_bytes=sum(process.memory.resident for process in processes),
        started_by_cria=False,
        ready=False,
        blockers=(f"{error.message}: {error.details}",),
    )


def _with_checks(inventory: Inventory) -> Listed:
    from cria.operations.checks.engine import ENGINE_CHECKS

    failed = [row for check in ENGINE_CHECKS for row in check(inventory) if row.level == "fail"]
    root = inventory.root
    return Listed(
        pid=root.pid,
        uid=root.uid,
        model=inventory.topology.model,
        topology=inventory.topology,
        url=inventory.topology.url,
        started=root.started,
        age_seconds=max(0.0, inventory.taken - root.started),
        processes=len(inventory.processes),
        memory_bytes=sum(process.memory.resident for process in inventory.processes),
        started_by_cria=discovery.started_by_cria(root.pid),
        ready=not failed,
        blockers=tuple(f"{row.subject}: {row.value}" for row in failed),
    )


def _row(engine: Listed) -> tuple[str, ...]:
    return (
        str(engine.pid),
        output.middle(engine.model or "?", 28),
        layout(engine.topology) if engine.topology else "?",
        engine.url or "?",
        age(engine.age_seconds),
        size(engine.memory_bytes),
        "yes" if engine.ready else "no",
    )
