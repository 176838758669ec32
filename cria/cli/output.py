"""What verbs print: progress and timings on stderr, the result alone on stdout; tables and properties."""

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
    Timings,
    Warned,
    nobody,
)
from cria.model.units import size

Function = TypeVar("Function", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
)


def progress_option(function: Function) -> Function:
    return click.option(
        "--progress",
        type=click.Choice(["auto", "lines", "json", "none"]),
        default="auto",
        help="Show progress on stderr: live on a terminal, as lines, as JSON lines, or not at all.",
    )(function)


def listener(style: str) -> Listener:
    """Return the listener for a value of --progress; `auto` is live on a terminal, lines elsewhere."""
    if style == "none":
        return nobody
    if style == "json":
        return _print_json
    return ProgressPrinter(live=style == "auto" and sys.stderr.isatty())


class ProgressPrinter:
    """Print a line for each finished step. A live printer also shows the running step, and replaces it."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._start = time.monotonic()
        self._title = ""

    def __call__(self, event: Event) -> None:
        match event:
            case StepStarted(title=title):
                self._title = title
                self._show(f"{title} ...")
            case Progress():
                self._show(f"{self._title} {size(event.done_bytes)}")
            case StepFinished(title=title):
                self._print(f"{event.seconds:7.3f} s  {title}{_throughput(event)}")
            case StepFailed(title=title):
                self._print(click.style(f"{event.seconds:7.3f} s  {title}: failed", fg="red"))
            case StepUndone(title=title):
                self._print(click.style(f"           undone: {title}", dim=True))
            case Warned():
                self._print(f"{click.style('warning', fg='yellow')}: {event.message}")

    def _show(self, text: str) -> None:
        if self._live:
            elapsed = time.monotonic() - self._start
            click.echo(f"\r\x1b[K{elapsed:7.1f} s  {text}", err=True, nl=False)

    def _print(self, text: str) -> None:
        click.echo(f"\r\x1b[K{text}" if self._live else text, err=True)


def _print_json(event: Event) -> None:
    click.echo(msgspec.json.encode(event).decode(), err=True)


def _throughput(event: StepFinished) -> str:
    if not event.bytes:
        return ""
    rate = f", {size(int(event.bytes / event.seconds))}/s" if event.seconds > 0.01 else ""
    return f"  ({size(event.bytes)}{rate})"


def document(value: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def timings_table(timings: Timings, *, least_seconds: float = 0.0005) -> str:
    """Return the seconds of each step and of the rest, which add up to the wall time."""
    shown = [step for step in timings.steps if step.seconds >= least_seconds]
    rest = timings.wall_seconds - sum(step.seconds for step in shown)
    rows = [(step.seconds, step.name) for step in shown]
    rows += [(rest, "everything else"), (timings.wall_seconds, "in all")]
    return "\n".join(f"{seconds:>9.3f} s  {name}" for seconds, name in rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are as wide as their widest cell, under a head in upper case."""
    lines = [[name.upper() for name in head], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def properties(rows: Sequence[tuple[str, str]]) -> str:
    """Return a name and a value on each line, the values below each other."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in rows)


def middle(text: str, width: int) -> str:
    """Return `text`; where it is longer than `width`, an ellipsis replaces its middle."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"


def short_state(state: str) -> str:
    """Return a socket's state as ss(8) shortens it."""
    return {"ESTABLISHED": "ESTAB"}.get(state, state)
