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
from typing import TYPE_CHECKING

import click

from cria.cli import output
from cria.cli.results import Started
from cria.system.processes import orphans_adopted

if TYPE_CHECKING:
    from cria.engine.launch.launcher import Launched

_SECONDS_BETWEEN_READS = 0.1


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--log", type=click.Path(path_type=Path), help="Append the engine's output to this file."
)
@click.option(
    "--detach", is_flag=True, help="Return once the engine is healthy, and print its url."
)
@click.option(
    "--wait",
    "seconds",
    type=float,
    default=600.0,
    show_default=True,
    help="With --detach: seconds to wait until the engine is healthy.",
)
@click.option("-q", "--quiet", is_flag=True, help="Do not show what is set for the engine.")
@output.json_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- CMD...")
def command(
    log: Path | None,
    detach: bool,
    seconds: float,
    quiet: bool,
    as_json: bool,
    arguments: tuple[str, ...],
) -> None:
    """Start the engine CMD (vllm serve ...) so that it can be checkpointed.

    The engine runs without io_uring and keeps its inner connections on loopback; its output goes to a
    log that may grow. With --port auto cria chooses a port and reserves it for the engine, so that many
    engines can start at the same time.

    In the foreground the output is shown too, signals are passed on to the engine, and cria exits with
    the engine's status.
    """
    from cria.engine.launch.launcher import assign_ports, launch, wait_until_serving

    path = log or Path(f"cria-{time.strftime('%Y%m%dT%H%M%S')}.log")
    old_log_bytes = path.stat().st_size if path.exists() else 0
    with assign_ports(arguments) as engine_command:
        launched = launch(engine_command, path)
        if not quiet:
            _show_settings(launched)
        if not detach:
            sys.exit(_follow_until_exit(launched.process, launched.log, old_log_bytes))
        try:
            url = wait_until_serving(launched, seconds=seconds)
        except BaseException:
            launched.process.terminate()
            raise
    if as_json:
        output.document(Started(url=url, pid=launched.pid, log=str(launched.log)))
    else:
        click.echo(url)


def _show_settings(launched: Launched) -> None:
    for setting in launched.settings:
        state = "kept" if setting.kept else "set"
        click.echo(f"{state}: {setting}  ({setting.why})", err=True)
    click.echo("set: io_uring is hidden by a seccomp filter  (CRIU cannot dump it)", err=True)
    click.echo(f"process {launched.pid}, log {launched.log}", err=True)


def _follow_until_exit(process: subprocess.Popen[bytes], log: Path, offset: int) -> int:
    """Show the log from `offset` as it grows and pass signals on; return a status as shells report it."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, pass_on)
    ended = threading.Event()
    follower = threading.Thread(target=_copy_log, args=(log, offset, ended), daemon=True)
    follower.start()
    # The engine's children become ours when it ends; they are reaped, so that none stays a zombie.
    with orphans_adopted():
        status = process.wait()
        ended.set()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    follower.join(timeout=5)
    return 128 - status if status < 0 else status


def _copy_log(log: Path, offset: int, ended: threading.Event) -> None:
    with log.open("rb") as file:
        file.seek(offset)
        while True:
            # Asked before the read, so that the last read finds all that the engine wrote.
            is_last = ended.is_set()
            while chunk := file.read(65536):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            if is_last:
                return
            ended.wait(_SECONDS_BETWEEN_READS)
