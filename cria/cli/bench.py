"""cria bench: run the benchmarks of a checkout; the installed package has none."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import click

from cria.errors import UsageError

CHECKOUT = Path(__file__).parents[2]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def _missing(arguments: tuple[str, ...]) -> None:  # noqa: ARG001 - click passes it
    """Compare a cold start, CRIU alone and cria. Needs a checkout of cria."""
    raise UsageError(
        "cria bench needs a checkout of cria",
        details=f"{CHECKOUT} has no benchmarks: they are not part of the installed package",
        remedy="clone cria's repository and run there: make bench",
        docs="docs/explanation/speed.md",
    )


def _find_command() -> click.Command:
    if not (CHECKOUT / "benchmarks" / "command.py").is_file():
        return _missing
    if str(CHECKOUT) not in sys.path:
        sys.path.append(str(CHECKOUT))
    module = import_module("benchmarks.command")
    bench: click.Command = module.command
    return bench


command = _find_command()
