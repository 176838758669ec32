"""cria pack: parse, call cria.pack, print the archive's path."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cria.cli import output

STDOUT = Path("-")


@click.command
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@output.json_option
@output.progress_option
def command(checkpoint: Path, file: Path, as_json: bool, progress: str) -> None:
    """Write CHECKPOINT as one archive, compressed with zstd, to the new FILE; to stdout with '-'.

    Its digests are compared on the way, so a damaged checkpoint is not packed.
    """
    from cria.cli.results import Packed
    from cria.operations.pack import pack

    tell = output.listener(progress)
    if file == STDOUT:
        pack(checkpoint, sys.stdout.buffer, listener=tell)
        return
    pack(checkpoint, file, listener=tell)
    place = file.absolute()
    size = place.stat().st_size
    output.document(Packed(archive=str(place), bytes=size)) if as_json else click.echo(place)
