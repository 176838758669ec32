"""The command `cria`: parse, call the API, render. Each verb is a module, imported when it is used."""

from __future__ import annotations

import atexit
import gc
import importlib
from typing import Any

import click

from cria.model.version import VERSION

# name -> (module, one line). The line stands here so that `cria --help` imports no verb.
VERBS = {
    "doctor": ("cria.cli.doctor", "Can this host, this engine, this checkpoint do it?"),
    "run": ("cria.cli.run", "Start an engine so that it can be checkpointed."),
    "ps": ("cria.cli.ps", "List the engines on this host."),
    "inspect": ("cria.cli.inspect", "Show what an engine or a checkpoint holds."),
    "dump": ("cria.cli.dump", "Dump an engine into a checkpoint."),
    "restore": ("cria.cli.restore", "Bring an engine back, on other ports if wanted."),
    "share": ("cria.cli.share", "Make ready, or remove, the memory that clones share."),
    "stop": ("cria.cli.stop", "End an engine and clear away what it leaves."),
    "verify": ("cria.cli.verify", "See whether a checkpoint is whole."),
    "pack": ("cria.cli.pack", "Make one compressed archive of a checkpoint."),
    "unpack": ("cria.cli.unpack", "Open such an archive, safely."),
    "kubernetes": ("cria.cli.kubernetes", "Checkpoint engines in a cluster's pods."),
    "bench": ("cria.cli.bench", "Measure cold start, CRIU alone and cria, by turns."),
    "demo": ("cria.cli.demo", "The whole story on a tiny model on the CPU."),
}


class Verbs(click.Group):
    """A group whose commands are imported by name."""

    def __init__(self, *words: Any, verbs: dict[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*words, **options)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self._verbs:
            return None
        command: click.Command = importlib.import_module(self._verbs[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        if not self._verbs:
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._verbs.items()])


@click.command(cls=Verbs, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def cli() -> None:
    """Checkpoint a running vLLM engine, and bring it back in seconds, beside others.

    stdout holds the result only; everything else goes to stderr.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; every error ends in one place, with its own exit status."""
    from cria.cli.failure import guarded

    # What loading makes stays: to look through it again and again takes a twentieth of the loading.
    gc.set_threshold(100_000)
    # Else the interpreter looks through every object of every module before it ends: 40 ms for nothing.
    atexit.register(gc.freeze)
    return guarded(cli, arguments)
