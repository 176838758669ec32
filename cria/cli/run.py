"""cria run: start an engine so that it can be checkpointed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click

from cria.cli import output


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--log", "log", type=click.Path(path_type=Path), help="Append the engine's output here."
)
@click.option(
    "--detach", is_flag=True, help="Return once the engine is healthy, and print its url."
)
@click.option("--wait", "seconds", type=float, default=600.0, help="Seconds --detach waits.")
@click.option("-q", "--quiet", is_flag=True, help="Do not tell what is set.")
@output.json_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- CMD...")
def command(
    log: Path | None,
    detach: bool,
    seconds: float,
    quiet: bool,
    as_json: bool,
    words: tuple[str, ...],
) -> None:
    """Start CMD (vllm serve ...) without io_uring, on loopback, its output in a log that may grow.

    A port that CMD leaves open (--port auto) is chosen and held for it, so that many engines may start
    at once. In the foreground its output is shown too, signals go to it, and its exit status is returned.
    """
    from cria.engine.launch import automatic_ports

    with automatic_ports.assign_ports(words) as command_words:
        _run(command_words, log, detach=detach, seconds=seconds, quiet=quiet, as_json=as_json)


def _run(
    words: list[str], log: Path | None, *, detach: bool, seconds: float, quiet: bool, as_json: bool
) -> None:
    from cria.engine.launch.launcher import launch, wait_until_serving

    path = log or Path(f"cria-{time.strftime('%Y%m%dT%H%M%S')}.log")
    shown_from = path.stat().st_size if path.exists() else 0
    launched = launch(words, path)
    if not quiet:
        for setting in launched.settings:
            state = "kept" if setting.kept else "set"
            click.echo(f"{state}: {setting}  ({setting.why})", err=True)
        click.echo("set: io_uring is hidden by a seccomp filter  (CRIU cannot dump it)", err=True)
        click.echo(f"process {launched.pid}, log {launched.log}", err=True)
    if not detach:
        sys.exit(_attend(launched.process, launched.log, shown_from))
    try:
        url = wait_until_serving(launched, seconds=seconds)
    except BaseException:
        launched.process.terminate()
        raise
    if as_json:
        from cria.cli.results import Started

        output.document(Started(url=url, pid=launched.pid, log=str(launched.log)))
    else:
        click.echo(url)


def _attend(process: subprocess.Popen[bytes], log: Path, shown_from: int) -> int:
    """Show the log as it grows, pass signals on, return the exit status as a shell would say it."""

    from cria.system.processes import orphans_adopted

    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, pass_on)
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(log, shown_from, ended), daemon=True)
    follower.start()
    with orphans_adopted():
        status = process.wait()
        ended.set()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    follower.join(timeout=5)
    return 128 - status if status < 0 else status


def _follow(log: Path, position: int, ended: threading.Event) -> None:
    with log.open("rb") as file:
        file.seek(position)
        while True:
            last = ended.is_set()
            while chunk := file.read(65536):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            if last:
                return
            ended.wait(0.1)
