"""cria stop: end an engine."""

from __future__ import annotations

import click

from cria.cli import output


@click.command
@click.argument("target", metavar="[PID|URL]", required=False)
@click.option("--wait", "seconds", type=float, default=20.0, help="Seconds before SIGKILL.")
@output.json_option
def command(target: str | None, seconds: float, as_json: bool) -> None:
    """End the engine that PID belongs to or that serves URL, and clear away what it leaves."""
    from cria.cli.results import Stopped
    from cria.engine import handle
    from cria.engine.inventory import discovery

    if target is None or target.isdigit():
        root = discovery.find_engine(int(target) if target else None)
    else:
        root = discovery.find_engine(None, port=_port(target))
    handle.stop(root, seconds=seconds)
    output.document(Stopped(stopped=root)) if as_json else click.echo(root)


def _port(url: str) -> int:
    from urllib.parse import urlsplit

    port = urlsplit(url).port
    if port is None:
        raise click.UsageError(f"{url!r} is neither a PID nor a url with a port.")
    return port
