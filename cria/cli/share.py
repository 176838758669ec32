"""cria share: prepare the memory that clones share, or remove it."""

from __future__ import annotations

from pathlib import Path

import click

from cria.cli import output
from cria.cli.results import Unshared
from cria.model.units import size


@click.command
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--in",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Use files in DIR instead of beside CHECKPOINT.",
)
@click.option("--remove", is_flag=True, help="Remove the files, unless an engine uses them.")
@output.json_option
@output.progress_option
def command(
    checkpoint: Path, directory: Path | None, remove: bool, as_json: bool, progress: str
) -> None:
    """Write the memory of CHECKPOINT to files that all clones restored with --share-memory map.

    Without this command the first of these clones writes the files. They take as much disk space as
    the checkpoint, and stay until they are removed.
    """
    from cria.checkpoint.handle import Checkpoint
    from cria.operations.share import share_memory, unshare_memory

    opened = Checkpoint.open(checkpoint)
    if remove:
        freed_bytes = unshare_memory(opened, directory)
        if as_json:
            output.document(Unshared(checkpoint=str(opened.path), bytes=freed_bytes))
        else:
            click.echo(f"{size(freed_bytes)} freed")
        return
    shared = share_memory(opened, directory, listener=output.listener(progress))
    if as_json:
        output.document(shared)
    else:
        click.echo(shared.summary, err=True)
        click.echo(shared.place)
