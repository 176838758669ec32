"""cria inspect: the inventory of an engine or of a checkpoint."""

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
@click.option("--port", type=int, help="Name the engine by its HTTP port instead of a PID.")
@click.option("--any-process", is_flag=True, help="Take a process tree that is no vLLM engine.")
@click.option("--sockets", is_flag=True, help="Every TCP, UDP and unix socket, and process groups.")
@click.option("--evidence", is_flag=True, help="With the sockets: what each role was read from.")
@click.option("--files", is_flag=True, help="Shared memory, deleted files, locks, devices.")
@click.option("--memory", is_flag=True, help="Memory by kind; looks for pages full of zeros.")
@click.option("--timings", is_flag=True, help="How long the dump's steps took (checkpoint).")
@click.option("--tree", is_flag=True, help="The processes, each under its parent.")
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
    """Show what an engine holds now, or what a checkpoint holds, in the same way.

    ARCHIVE is a container's checkpoint as the kubelet or a container runtime writes it.

    Without options: what it is, its processes and its TCP sockets with the role of each; "?" marks a
    role that is likely, not certain. Without a target the engine is found by --port, or is the only
    one on this host.
    """
    from cria.cli import inventory_tables as tables
    from cria.cli.documents import Stored, inspected, plain

    if target is not None and Path(target).is_file():
        _archive(Path(target), sockets=sockets, as_json=as_json)
        return
    inventory, checkpoint = _inventory(target, port, any_process)
    if memory and checkpoint is None:
        inventory = _with_zeros(inventory)
    if checkpoint is None and (as_json or sockets or evidence):
        inventory = _with_names(inventory)
    name = target if checkpoint is not None and target else str(inventory.root.pid)
    stored = Stored.of(checkpoint) if checkpoint is not None else None
    taken = checkpoint.manifest.timings if checkpoint is not None else None
    if as_json:
        output.document(plain(inspected(inventory, target=name, stored=stored, timings=taken)))
        return
    evidence_too = {"evidence": evidence}
    parts = [tables.processes(inventory, as_tree=True)] if tree else []
    if sockets or evidence:
        parts += [tables.sockets(inventory, **evidence_too)]
        parts += [tables.unix_sockets(inventory, **evidence_too), tables.groups(inventory)]
        parts += [tables.named_groups(inventory)] if inventory.named_groups else []
    parts += [tables.files(inventory)] if files else []
    parts += [tables.memory(inventory)] if memory else []
    parts += [_timings(taken)] if timings else []
    if not parts:
        parts = [tables.summary(inventory, name, stored), tables.processes(inventory, as_tree=True)]
        parts += [tables.sockets(inventory)]
    click.echo("\n\n".join(parts))


def _archive(path: Path, *, sockets: bool, as_json: bool) -> None:
    from cria.cli import archive_tables

    found = archive_tables.inspected(path)
    output.document(found) if as_json else click.echo(archive_tables.tables(found, unix=sockets))


def _inventory(
    target: str | None, port: int | None, any_process: bool
) -> tuple[Inventory, Checkpoint | None]:
    """Return a living engine's inventory, or that of a checkpoint and the checkpoint."""
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


def _with_zeros(inventory: Inventory) -> Inventory:
    from cria.system.memory import with_zeros

    looked = tuple(with_zeros(process) for process in inventory.processes)
    return msgspec.structs.replace(inventory, processes=looked)


def _with_names(inventory: Inventory) -> Inventory:
    """Ask the engine for torch's names of its groups; one that is busy is left in peace."""
    from cria.engine.control import lookup
    from cria.errors import QuiesceFailed

    try:
        named = lookup.named_groups(inventory)
    except QuiesceFailed as error:
        click.echo(f"torch's names of the groups: {error.details}", err=True)
        return inventory
    return msgspec.structs.replace(inventory, named_groups=named)


def _timings(stored: Timings | None) -> str:
    if stored is None:
        return "timings: only a checkpoint has them"
    return output.timings_table(stored)
