"""How verbs show what they do: progress and timings on stderr, the result alone on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
)
from cria.model.inventory import Holder, Role, Topology

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
                    click.echo(f"\r\x1b[K{self._clock()}  {event.title} ...", err=True, nl=False)
            case Progress():
                if self._live:
                    click.echo(
                        f"\r\x1b[K{self._clock()}  {event.step} {size(event.done_bytes)}",
                        err=True,
                        nl=False,
                    )
            case StepFinished():
                self._line(f"{event.seconds:7.3f} s  {event.title}{_rate(event)}")
            case StepFailed():
                self._line(click.style(f"{event.seconds:7.3f} s  {event.title}: failed", fg="red"))
            case StepUndone():
                self._line(click.style(f"           undone: {event.title}", dim=True))
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


def age(seconds: float) -> str:
    """Return an age in its two largest units."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds}s" if minutes else f"{seconds}s"


def middle(text: str, width: int) -> str:
    """Return `text` without its middle where it is longer than `width`."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"


def layout(topology: Topology) -> str:
    """Return the dimensions that are larger than one, and the API servers where there are several."""
    sizes = {"TP": topology.tensor, "PP": topology.pipeline, "DP": topology.data}
    parts = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    parts += [f"API={topology.api_servers}"] if topology.api_servers > 1 else []
    return " ".join(parts) or "TP=1"


def holder(holders: Sequence[Holder], roles: Mapping[int, str], width: int = 20) -> str:
    """Return who holds a socket: PID, descriptor and role of the first, and how many more."""
    if not holders:
        return "-"
    first = holders[0]
    more = f" +{len(holders) - 1}" if len(holders) > 1 else ""
    text = f"{first.pid}:{first.fd}{more} {roles.get(first.pid, '?')}"
    return text if len(text) <= width else f"{text[: width - 1]}…"


def role(each: Role) -> str:
    """Return a role; one that is not certain is said to be likely."""
    return each.name if each.confidence != "likely" else f"{each.name}?"
