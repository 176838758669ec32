"""How long an operation took, step by step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec


class StepTiming(msgspec.Struct, frozen=True, kw_only=True):
    """One step; `bytes` is what it moved, where it moves something."""

    name: str
    seconds: float
    bytes: int | None = None


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds per step; `unaccounted_seconds` is what is left of the wall time."""

    wall_seconds: float
    unaccounted_seconds: float
    steps: tuple[StepTiming, ...]

    def seconds(self, name: str) -> float:
        """What the steps of that name took together."""
        return sum(step.seconds for step in self.steps if step.name == name)


class StepStarted(msgspec.Struct, frozen=True, kw_only=True, tag="step_started"):
    operation: str
    step: str


class StepFinished(msgspec.Struct, frozen=True, kw_only=True, tag="step_finished"):
    operation: str
    step: str
    seconds: float
    bytes: int | None = None


class StepFailed(msgspec.Struct, frozen=True, kw_only=True, tag="step_failed"):
    operation: str
    step: str
    seconds: float
    message: str


class StepUndone(msgspec.Struct, frozen=True, kw_only=True, tag="step_undone"):
    operation: str
    step: str


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far the running step is; `total` is None where nobody knows."""

    step: str
    done_bytes: int
    total_bytes: int | None = None


class Warned(msgspec.Struct, frozen=True, kw_only=True, tag="warning"):
    """Something that a user should know although the operation goes on."""

    message: str
    remedy: str | None = None


Event = StepStarted | StepFinished | StepFailed | StepUndone | Progress | Warned
Listener = Callable[[Event], None]
OnBytes = Callable[[int], None]  # told the bytes of each piece as it passes


def progress(listener: Listener | None, step: str, total: int) -> Callable[[int], None]:
    """A function to call with bytes as they pass; the listener hears of it ten times a second at most.

    It may be called from several threads at once.
    """
    done, told, lock = 0, 0.0, threading.Lock()

    def moved(count: int) -> None:
        nonlocal done, told
        with lock:
            done += count
            now = time.monotonic()
            if listener is not None and (now - told >= 0.1 or done == total):
                told = now
                listener(Progress(step=step, done_bytes=done, total_bytes=total))

    return moved


def nobody(_event: Event) -> None:
    """The listener of a caller who does not listen."""
