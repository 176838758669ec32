"""The command `cria`. Each verb is a module: it parses options, calls the API and prints the result."""

from __future__ import annotations

import atexit
import gc
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import click

from cria.cli.failure import guarded
from cria.model.version import VERSION


class Verb(NamedTuple):
    """Where a command is defined, and its line in the list of commands: listing it imports nothing."""

    module: str
    summary: str


VERBS = {
    "doctor": Verb("cria.cli.doctor", "Check a host, an engine or a checkpoint, and suggest remedies."),
    "run": Verb("cria.cli.run", "Start an engine so that it can be checkpointed."),
    "ps": Verb("cria.cli.ps", "List the engines on this host."),
    "inspect": Verb("cria.cli.inspect", "Show what an engine or a checkpoint holds."),
    "dump": Verb("cria.cli.dump", "Dump an engine into a checkpoint."),
    "restore": Verb("cria.cli.restore", "Restore an engine from a checkpoint, on other ports if needed."),
    "share": Verb("cria.cli.share", "Prepare or remove the memory that clones share."),
    "stop": Verb("cria.cli.stop", "Stop an engine and clean up after it."),
    "verify": Verb("cria.cli.verify", "Verify that a checkpoint is complete and undamaged."),
    "pack": Verb("cria.cli.pack", "Pack a checkpoint into one compressed archive."),
    "unpack": Verb("cria.cli.unpack", "Unpack an archive into a checkpoint."),
    "kubernetes": Verb("cria.cli.kubernetes", "Checkpoint engines in a cluster's pods."),
    "bench": Verb("cria.cli.bench", "Compare a cold start, CRIU alone and cria."),
    "demo": Verb("cria.cli.demo", "Dump and restore a tiny model on the CPU."),
}  # fmt: skip


class Verbs(click.Group):
    """A group whose commands are imported when they are used."""

    def __init__(self, *args: Any, verbs: Mapping[str, Verb], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click passes it
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self._verbs:
            return None
        command: click.Command = importlib.import_module(self._verbs[cmd_name].module).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in self._verbs.items()])


@click.command(cls=Verbs, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def cli() -> None:
    """Checkpoint a running vLLM engine and restore it in seconds, beside others.

    The result is printed on stdout; progress, warnings and errors go to stderr.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the status of the command or of its error."""
    # What imports create stays alive; collecting it again and again takes a twentieth of their time.
    gc.set_threshold(100_000)
    # At exit the interpreter would go through every object of every module once more, for 40 ms.
    atexit.register(gc.freeze)
    guarded(cli, arguments)
