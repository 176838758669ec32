"""cria unpack: unpack an archive into a checkpoint and print its path."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cria.cli import output
from cria.cli.results import Unpacked

STDIN = Path("-")


@click.command
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("directory", type=click.Path(path_type=Path))
@output.json_option
@output.progress_option
def command(file: Path, directory: Path, as_json: bool, progress: str) -> None:
    """Unpack FILE, which cria pack wrote, into the new DIRECTORY; from stdin if FILE is "-".

    Every part is compared with its digest. An archive that holds anything that its manifest does not
    declare is refused, and nothing of it is left behind.
    """
    from cria.operations.pack import unpack

    source = sys.stdin.buffer if file == STDIN else file
    checkpoint = unpack(source, directory, listener=output.listener(progress))
    if as_json:
        parts = len(checkpoint.manifest.parts)
        output.document(Unpacked(checkpoint=str(checkpoint.path), parts=parts))
    else:
        click.echo(checkpoint.path)
