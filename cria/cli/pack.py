"""cria pack: pack a checkpoint into one archive and print its path."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cria.cli import output
from cria.cli.results import Packed

STDOUT = Path("-")


@click.command
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@output.json_option
@output.progress_option
def command(checkpoint: Path, file: Path, as_json: bool, progress: str) -> None:
    """Pack CHECKPOINT into the new file FILE, compressed with zstd, or to stdout if FILE is "-".

    Every part is compared with its digest: a damaged checkpoint is not packed.
    """
    from cria.operations.pack import pack

    listener = output.listener(progress)
    if file == STDOUT:
        pack(checkpoint, sys.stdout.buffer, listener=listener)
        return
    pack(checkpoint, file, listener=listener)
    archive = file.absolute()
    if as_json:
        output.document(Packed(archive=str(archive), bytes=archive.stat().st_size))
    else:
        click.echo(archive)
