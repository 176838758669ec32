"""cria verify: is a checkpoint whole, and is it what was dumped?"""

from __future__ import annotations

from pathlib import Path

import click

from cria.cli import output


@click.command
@click.argument("checkpoint", type=click.Path(path_type=Path))
@output.json_option
@output.progress_option
def command(checkpoint: Path, as_json: bool, progress: str) -> None:
    """Compare every part of CHECKPOINT with its digest.

    A part that is damaged, missing or too many is named, and the exit status is 41.
    """
    from cria.checkpoint.handle import Checkpoint
    from cria.cli.results import Verified

    opened = Checkpoint.open(checkpoint)
    parts = len(opened.manifest.parts)
    compared = opened.verify(output.listener(progress))
    if as_json:
        output.document(Verified(checkpoint=str(opened.path), parts=parts, bytes=compared))
        return
    click.echo(f"{opened.path} is whole: {parts} parts, {output.size(opened.size_bytes)}")
