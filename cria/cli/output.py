"""How verbs show what they do: progress and timings on stderr, the result alone on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import msgspec

from cria.events import (
    Event,
    Listener,
    Progress,
    StepFailed,
    StepFinished,
    StepStarted,
    StepUndone,
    Warned,
)
from cria.timings import Timings

Function = TypeVar("Function", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def hook_options(function: Function) -> Function:
    """The user's own programs, told of each stage: hooks/README.md."""
    seconds = click.option(
        "--hook-seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        help="Seconds a hook that is a program may take at each stage.",
    )
    return click.option(
        "--hook",
        "hooks",
        multiple=True,
        metavar="PATH|NAME",
        help="Run this program, or the hook of an installed package, at each stage; repeatable.",
    )(seconds(function))


def progress_option(function: Function) -> Function:
    return click.option(
        "--progress",
        type=click.Choice(["auto", "lines", "json", "none"]),
        default="auto",
        help="How steps are told on stderr.",
    )(function)


def listener(progress: str) -> Listener:
    """A listener for what --progress asks: a live line on a terminal, plain lines off it."""
    if progress == "none":
        return lambda _event: None
    if progress == "json":
        return _json_line
    live = progress == "auto" and sys.stderr.isatty()
    return Teller(live=live)


class Teller:
    """Tells steps as they pass; on a terminal the running step is shown and then replaced."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._begin = time.monotonic()

    def __call__(self, event: Event) -> None:
        match event:
            case StepStarted():
                if self._live:
                    click.echo(f"\r\x1b[K{self._clock()}  {event.step} ...", err=True, nl=False)
            case Progress():
                if self._live:
                    click.echo(
                        f"\r\x1b[K{self._clock()}  {event.step} {size(event.done_bytes)}",
                        err=True,
                        nl=False,
                    )
            case StepFinished():
                self._line(f"{event.seconds:7.3f} s  {event.step}{_rate(event)}")
            case StepFailed():
                self._line(click.style(f"{event.seconds:7.3f} s  {event.step}: failed", fg="red"))
            case StepUndone():
                self._line(click.style(f"           undone: {event.step}", dim=True))
            case Warned():
                self._line(f"{click.style('warning', fg='yellow')}: {event.message}")

    def _line(self, text: str) -> None:
        click.echo(f"\r\x1b[K{text}" if self._live else text, err=True)

    def _clock(self) -> str:
        return f"{time.monotonic() - self._begin:7.1f} s"


def timings_table(timings: Timings, *, least_seconds: float = 0.0005) -> str:
    """Seconds per step, with the remainder named, so that the column adds up to the wall time."""
    shown = [step for step in timings.steps if step.seconds >= least_seconds]
    hidden = sum(step.seconds for step in timings.steps if step.seconds < least_seconds)
    rows = [(f"{step.seconds:.3f}", step.name) for step in shown]
    rows += [(f"{hidden + timings.unaccounted_seconds:.3f}", "everything else")]
    rows += [(f"{timings.wall_seconds:.3f}", "in all")]
    return "\n".join(f"{seconds:>9} s  {name}" for seconds, name in rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; upper-case heads."""
    cells = [[h.upper() for h in head], *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def document(value: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def size(count: int) -> str:
    """A number of bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"


def _rate(event: StepFinished) -> str:
    if not event.bytes:
        return ""
    rate = f", {size(int(event.bytes / event.seconds))}/s" if event.seconds > 0.01 else ""
    return f"  ({size(event.bytes)}{rate})"


def _json_line(event: Event) -> None:
    click.echo(msgspec.json.encode(event).decode(), err=True)
