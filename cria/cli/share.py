"""cria share: make the memory ready that clones share, or remove it."""

from __future__ import annotations

from pathlib import Path

import click

from cria.cli import output


@click.command
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--in",
    "place",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where it lies, if not beside CHECKPOINT.",
)
@click.option("--remove", is_flag=True, help="Remove it, unless an engine uses it.")
@output.json_option
@output.progress_option
def command(
    checkpoint: Path, place: Path | None, remove: bool, as_json: bool, progress: str
) -> None:
    """Copy the memory of CHECKPOINT once, for all clones that are restored with --share-memory.

    Without it the first of them does. It stays until it is removed, and takes as much disk as
    the checkpoint.
    """
    from cria.checkpoint.handle import Checkpoint
    from cria.operations.share import share_memory, unshare_memory

    opened = Checkpoint.open(checkpoint)
    if remove:
        _removed(opened.path, unshare_memory(opened, place), as_json=as_json)
        return
    shared = share_memory(opened, place, listener=output.listener(progress))
    if as_json:
        output.document(shared)
        return
    click.echo(shared.told, err=True)
    click.echo(shared.place)


def _removed(checkpoint: Path, freed: int, *, as_json: bool) -> None:
    from cria.cli.results import Unshared

    if as_json:
        output.document(Unshared(checkpoint=str(checkpoint), bytes=freed))
    else:
        click.echo(f"{output.size(freed)} freed")
