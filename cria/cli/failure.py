"""Turn an error into text or JSON and an exit status, in one place for all commands."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from cria.errors import CriaError, UsageError

INTERRUPTED = 128 + signal.SIGINT


def guarded(cli: click.Command, arguments: list[str] | None) -> NoReturn:
    """Run `cli` and exit. An error is shown on stderr, or with --json as a document on stdout."""
    argv = sys.argv[1:] if arguments is None else arguments
    # What follows "--" belongs to the engine's command, not to cria.
    as_json = "--json" in (argv[: argv.index("--")] if "--" in argv else argv)
    undo_on_termination()
    try:
        cli.main(argv, prog_name="cria", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        show(_usage_error(error), as_json=as_json)
        sys.exit(UsageError.exit_status)
    except CriaError as error:
        show(error, as_json=as_json)
        sys.exit(error.exit_status)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what had begun was undone", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the outermost handler
        show(_bug(error), as_json=as_json)
        sys.exit(CriaError.exit_status)
    sys.exit(0)


def undo_on_termination() -> None:
    """Let SIGTERM and SIGHUP interrupt an operation as Ctrl-C does, so that it is undone.

    A signal that is ignored stays ignored (nohup). Commands may set handlers of their own afterwards.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def show(error: CriaError, *, as_json: bool) -> None:
    """Print what happened, why, how to fix it and where to read more."""
    if as_json:
        import json  # as in _bug

        click.echo(json.dumps({"error": error.to_json()}, indent=2))
        return
    click.echo(f"{click.style('error', fg='red', bold=True)}: {error.message}", err=True)
    for line in (error.details or "").splitlines():
        click.echo(f"  why: {line}", err=True)
    if error.remedy:
        click.echo(f"  fix: {error.remedy}", err=True)
    references = [error.docs] if error.docs else []
    references += [f"log: {error.log}"] if error.log else []
    if references:
        click.echo(f"  see: {'   '.join(references)}", err=True)


def _usage_error(error: click.ClickException) -> UsageError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "cria"
    return UsageError(error.format_message(), remedy=f"{command} --help")


def _bug(error: Exception) -> CriaError:
    # Imported here: these take 5 ms of the 50 ms of `cria --help`, and are needed for a bug only.
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
