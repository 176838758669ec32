"""cria verify: compare a checkpoint with its digests."""

from __future__ import annotations

from pathlib import Path

import click

from cria.cli import output
from cria.cli.results import Verified
from cria.model.units import size


@click.command
@click.argument("checkpoint", type=click.Path(path_type=Path))
@output.json_option
@output.progress_option
def command(checkpoint: Path, as_json: bool, progress: str) -> None:
    """Verify that CHECKPOINT is complete and that every part matches its digest.

    The error names each part that is damaged, missing or unexpected; the exit status is then 41.
    """
    from cria.checkpoint.handle import Checkpoint

    opened = Checkpoint.open(checkpoint)
    parts = len(opened.manifest.parts)
    compared_bytes = opened.verify(output.listener(progress))
    if as_json:
        output.document(Verified(checkpoint=str(opened.path), parts=parts, bytes=compared_bytes))
    else:
        click.echo(f"{opened.path} is whole: {parts} parts, {size(opened.size_bytes)}")
