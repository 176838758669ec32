"""cria inspect: show the inventory of an engine or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cria.cli import output

if TYPE_CHECKING:
    from cria.checkpoint.handle import Checkpoint
    from cria.events import Timings
    from cria.model.inventory import Inventory


@click.command
@click.argument("target", required=False, metavar="[PID|CHECKPOINT|ARCHIVE]")
@click.option("--port", type=int, help="Find the engine by the port of its HTTP API.")
@click.option("--any-process", is_flag=True, help="Accept a process tree that is no vLLM engine.")
@click.option("--sockets", is_flag=True, help="Show all sockets, and the process groups.")
@click.option("--evidence", is_flag=True, help="Show all sockets and what each role was read from.")
@click.option("--files", is_flag=True, help="Show shared memory, deleted files, locks and devices.")
@click.option("--memory", is_flag=True, help="Show memory by kind, and estimate its zero pages.")
@click.option("--timings", is_flag=True, help="Show how long each step of the dump took.")
@click.option("--tree", is_flag=True, help="Show the processes, each below its parent.")
@output.json_option
def command(
    target: str | None,
    port: int | None,
    any_process: bool,
    sockets: bool,
    evidence: bool,
    files: bool,
    memory: bool,
    timings: bool,
    tree: bool,
    as_json: bool,
) -> None:
    """Show what an engine or a checkpoint holds.

    By default a summary, the processes and the TCP sockets with their roles; a "?" marks a role that is
    likely, not certain. Without a target the engine is found by --port, or is the only one on this host.

    ARCHIVE is a container's checkpoint, as the kubelet or a container runtime writes it.
    """
    from cria.cli import inventory_tables
    from cria.cli.inventory_documents import Inspected, Stored, flatten_roles

    if target is not None and Path(target).is_file():
        _show_archive(Path(target), with_unix_sockets=sockets, as_json=as_json)
        return
    inventory, checkpoint = _open(target, port, any_process)
    dump_timings, stored, name = None, None, str(inventory.root.pid)
    if checkpoint is not None:
        dump_timings, stored = checkpoint.manifest.timings, Stored.of(checkpoint)
        name = target or name
    else:
        if memory:
            inventory = _with_zero_pages(inventory)
        if as_json or sockets or evidence:
            inventory = _with_named_groups(inventory)
    if as_json:
        inspected = Inspected.of(inventory, target=name, stored=stored, timings=dump_timings)
        output.document(flatten_roles(inspected))
        return
    parts = [inventory_tables.processes(inventory)] if tree else []
    if sockets or evidence:
        parts += inventory_tables.all_sockets(inventory, evidence=evidence)
    if files:
        parts.append(inventory_tables.files(inventory))
    if memory:
        parts.append(inventory_tables.memory(inventory))
    if timings:
        parts.append(_timings(dump_timings))
    if not parts:
        parts = [
            inventory_tables.summary(inventory, name, stored),
            inventory_tables.processes(inventory),
            inventory_tables.sockets(inventory),
        ]
    click.echo("\n\n".join(parts))


def _show_archive(path: Path, *, with_unix_sockets: bool, as_json: bool) -> None:
    from cria.cli import archive_tables
    from cria.cli.archive_documents import InspectedArchive

    archive = InspectedArchive.of(path)
    if as_json:
        output.document(archive)
    else:
        click.echo(archive_tables.archive(archive, with_unix_sockets=with_unix_sockets))


def _open(
    target: str | None, port: int | None, any_process: bool
) -> tuple[Inventory, Checkpoint | None]:
    """Return the inventory of a checkpoint and the checkpoint, or the inventory of a running engine."""
    from cria.engine.inventory import discovery
    from cria.engine.inventory.collect import collect_inventory

    if target is not None and not target.isdecimal():
        from cria.checkpoint.handle import Checkpoint

        checkpoint = Checkpoint.open(target)
        return checkpoint.manifest.inventory, checkpoint
    pid = None if target is None else int(target)
    if any_process and pid is not None:
        return collect_inventory(pid, any_process=True), None
    return collect_inventory(discovery.find_engine(pid, port)), None


def _with_zero_pages(inventory: Inventory) -> Inventory:
    from cria.system.memory import with_zeros

    processes = tuple(with_zeros(process) for process in inventory.processes)
    return msgspec.structs.replace(inventory, processes=processes)


def _with_named_groups(inventory: Inventory) -> Inventory:
    """Ask the engine for torch's names of its process groups; a busy engine is not waited for."""
    from cria.engine.control import lookup
    from cria.errors import QuiesceFailed

    try:
        named_groups = lookup.named_groups(inventory)
    except QuiesceFailed as error:
        click.echo(f"torch's names of the process groups: {error.details}", err=True)
        return inventory
    return msgspec.structs.replace(inventory, named_groups=named_groups)


def _timings(timings: Timings | None) -> str:
    if timings is None:
        return "timings: only a checkpoint has them"
    return output.timings_table(timings)
