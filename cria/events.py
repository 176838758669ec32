"""What a listener hears while an operation runs, and how long its steps took. Steps never print: they send events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec


class StepTiming(msgspec.Struct, frozen=True, kw_only=True):
    """How long one step took; `bytes` is what it moved, if it moves something.

    `id` names the step for programs, `name` for people. `id` is empty in old checkpoints.
    """

    id: str = ""
    name: str
    seconds: float
    bytes: int | None = None


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds per step; `unaccounted_seconds` is the rest of the wall time."""

    wall_seconds: float
    unaccounted_seconds: float
    steps: tuple[StepTiming, ...]

    def seconds(self, step: str) -> float:
        """Return the seconds that the steps with the id `step` took together."""
        return sum(timing.seconds for timing in self.steps if timing.id == step)


class StepStarted(msgspec.Struct, frozen=True, kw_only=True, tag="step_started"):
    """`step` is the step's id, for programs; `title` is its name, for people."""

    operation: str
    step: str
    title: str


class StepFinished(msgspec.Struct, frozen=True, kw_only=True, tag="step_finished"):
    """A step is done; `bytes` is what it moved, if it moves something."""

    operation: str
    step: str
    title: str
    seconds: float
    bytes: int | None = None


class StepFailed(msgspec.Struct, frozen=True, kw_only=True, tag="step_failed"):
    """A step raised; what had started before is undone next."""

    operation: str
    step: str
    title: str
    seconds: float
    message: str


class StepUndone(msgspec.Struct, frozen=True, kw_only=True, tag="step_undone"):
    """What a step changed is as it was before."""

    operation: str
    step: str
    title: str


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far the running step is; `total_bytes` is None where it is not known."""

    step: str
    done_bytes: int
    total_bytes: int | None = None


class Warned(msgspec.Struct, frozen=True, kw_only=True, tag="warning"):
    """Something that a user should know although the operation goes on."""

    message: str
    remedy: str | None = None


Event = StepStarted | StepFinished | StepFailed | StepUndone | Progress | Warned
Listener = Callable[[Event], None]
OnBytes = Callable[[int], None]  # called with the bytes of each piece as it passes

_SECONDS_BETWEEN = 0.1


def progress(listener: Listener | None, step: str, total: int) -> OnBytes:
    """Return a function to call with bytes as they pass, from any thread.

    The listener hears of the step `step` ten times a second at most, and at its end.
    """
    done, last, lock = 0, 0.0, threading.Lock()

    def moved(count: int) -> None:
        nonlocal done, last
        with lock:
            done += count
            now = time.monotonic()
            if listener is not None and (now - last >= _SECONDS_BETWEEN or done == total):
                last = now
                listener(Progress(step=step, done_bytes=done, total_bytes=total))

    return moved


def nobody(_event: Event) -> None:
    """Ignore an event: the listener of a caller that has none."""
