"""The one place where an error becomes text or JSON, and an exit status."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from cria.errors import CriaError, UsageError

INTERRUPTED = 128 + 2


def guarded(cli: click.Command, arguments: list[str] | None) -> NoReturn:
    """Run `cli`; show any error in its four parts, as JSON where --json was given; exit."""
    words = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in words[: words.index("--")] if "--" in words else "--json" in words
    undo_when_told_to_end()
    try:
        cli.main(words, prog_name="cria", standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        _usage(error, as_json=as_json)
    except CriaError as error:
        show(error, as_json=as_json)
        sys.exit(error.exit_status)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what had begun was undone", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the outermost handler: a bug is told as one
        show(_bug(error), as_json=as_json)
        sys.exit(CriaError.exit_status)
    sys.exit(0)


def undo_when_told_to_end() -> None:
    """SIGTERM and SIGHUP end an operation as Ctrl-C does, undone: an engine must not be left half dumped.

    What is ignored stays ignored (nohup), and commands that know better set their own handlers.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def show(error: CriaError, *, as_json: bool) -> None:
    """What, why, fix, see: the same four parts for every error."""
    if as_json:
        import json

        click.echo(json.dumps({"error": error.to_json()}, indent=2))
        return
    click.echo(f"{click.style('error', fg='red', bold=True)}: {error.message}", err=True)
    for line in (error.details or "").splitlines():
        click.echo(f"  why: {line}", err=True)
    if error.remedy:
        click.echo(f"  fix: {error.remedy}", err=True)
    see = [error.docs] if error.docs else []
    see += [f"log: {error.log}"] if error.log else []
    if see:
        click.echo(f"  see: {'   '.join(see)}", err=True)


def _usage(error: click.ClickException, *, as_json: bool) -> NoReturn:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "cria"
    shown = UsageError(error.format_message(), remedy=f"{command} --help")
    show(shown, as_json=as_json)
    sys.exit(UsageError.exit_status)


def _bug(error: Exception) -> CriaError:
    import tempfile
    import time
    import traceback

    log = Path(tempfile.gettempdir()) / f"cria-bug-{time.strftime('%Y%m%dT%H%M%S')}.log"
    log.write_text(traceback.format_exc())
    return CriaError(
        f"a bug in cria: {type(error).__name__}: {error}",
        remedy="please report it with the log and the output of: cria doctor --report",
        log=str(log),
    )
