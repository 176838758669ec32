"""cria kubernetes: what cria does in a cluster. Each verb is a module here, imported when it is used."""

from __future__ import annotations

import click

from cria.cli import Verbs

# name -> (module, one line), as in cria.cli.
VERBS: dict[str, tuple[str, str]] = {
    "checkpoint": (
        "cria.cli.kubernetes.checkpoint",
        "Have a container checkpointed by its node, at a still point.",
    ),
    "node": ("cria.cli.kubernetes.node", "Have a node's checkpoints taken at a still point."),
    "remap": ("cria.cli.kubernetes.remap", "Move the ports in a container's checkpoint archive."),
    "prune": ("cria.cli.kubernetes.prune", "Remove old archives of a node."),
}


@click.command(cls=Verbs, verbs=VERBS)
def command() -> None:
    """Checkpoint engines that run in a cluster's pods, and work on the archives."""
