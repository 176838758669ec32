"""cria kubernetes: what cria does in a cluster. Each verb is a module here, imported when it is used."""

from __future__ import annotations

import click

from cria.cli import Verb, Verbs

VERBS = {
    "checkpoint": Verb(
        "cria.cli.kubernetes.checkpoint",
        "Checkpoint containers through their nodes, with the engine quiesced.",
    ),
    "node": Verb(
        "cria.cli.kubernetes.node", "Quiesce the engine at every checkpoint that a node takes."
    ),
    "remap": Verb("cria.cli.kubernetes.remap", "Move the ports in a checkpoint archive."),
    "prune": Verb("cria.cli.kubernetes.prune", "Remove old archives from a node."),
}


@click.command(cls=Verbs, verbs=VERBS)
def command() -> None:
    """Checkpoint engines that run in the pods of a cluster, and work on their archives."""
