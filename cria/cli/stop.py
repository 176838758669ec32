"""cria stop: stop an engine."""

from __future__ import annotations

from urllib.parse import urlsplit

import click

from cria.cli import output
from cria.cli.results import Stopped


@click.command
@click.argument("target", metavar="[PID|URL]", required=False)
@click.option(
    "--wait",
    "seconds",
    type=float,
    default=20.0,
    show_default=True,
    help="Seconds to wait before processes that still run are killed.",
)
@output.json_option
def command(target: str | None, seconds: float, as_json: bool) -> None:
    """Stop the engine of the process PID, or the one that serves URL, and clean up after it.

    Without a target the engine is the only one on this host.
    """
    from cria.engine import handle
    from cria.engine.inventory import discovery

    if target is None or target.isdigit():
        root = discovery.find_engine(int(target) if target else None)
    else:
        root = discovery.find_engine(None, port=_port(target))
    handle.stop(root, seconds=seconds)
    if as_json:
        output.document(Stopped(stopped=root))
    else:
        click.echo(root)


def _port(url: str) -> int:
    port = urlsplit(url).port
    if port is None:
        raise click.UsageError(f"{url!r} is neither a PID nor a url with a port.")
    return port
