"""cria verify: is a checkpoint whole?"""

from __future__ import annotations

from pathlib import Path

import click

from cria.cli import output


@click.command
@click.argument("checkpoint", type=click.Path(path_type=Path))
@output.json_option
def command(checkpoint: Path, as_json: bool) -> None:
    """See whether every part of CHECKPOINT is there with its size."""
    from cria.checkpoint import Checkpoint

    opened = Checkpoint.open(checkpoint)
    parts = len(opened.manifest.parts)
    if as_json:
        output.document({"checkpoint": str(opened.path), "parts": parts, "whole": True})
        return
    click.echo(f"{opened.path} is whole: {parts} parts, {output.size(opened.size_bytes)}")
