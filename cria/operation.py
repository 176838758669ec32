"""Run the steps of an operation in order: time them, report them, undo them in reverse when one fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Generic, TypeVar

from cria.events import (
    Listener,
    StepFailed,
    StepFinished,
    StepStarted,
    StepTiming,
    StepUndone,
    Timings,
    nobody,
)

State = TypeVar("State", contravariant=True)  # noqa: PLC0105 - the plain word reads better


class Step(Generic[State]):
    """One part of an operation and, where it changes something, the way back.

    `id` is what programs match on: it stays when `title`, the words for people, changes. `run` may
    return the number of bytes that it moved. `undo` is called when a later step fails, and also when
    `run` itself fails half-way: it must cope with both. `when` says whether the step is needed; a
    step that is not needed is neither run nor reported nor undone.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's own word, and what JSON calls it
        title: str,
        run: Callable[[State], int | None],
        undo: Callable[[State], None] | None = None,
        *,
        when: Callable[[State], bool] | None = None,
    ) -> None:
        self.id = id
        self.title = title
        self.run = run
        self.undo = undo
        self.when = when


class StepState:
    """The base of what the steps of one operation hand on to each other.

    A field without a default is set by a step. Later steps rely on it; an undo, which may run before
    that step has come so far, asks `has`.
    """

    def has(self, name: str) -> bool:
        """Return whether the field `name` has been set."""
        return name in self.__dict__


class Cancelled(Exception):
    """Another thread has cancelled the operation."""


class Stopwatch:
    """Collect the timings of steps against one wall clock."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._steps: list[StepTiming] = []

    def add(self, timing: StepTiming) -> None:
        self._steps.append(timing)

    def read(self) -> Timings:
        wall = time.monotonic() - self._start
        accounted = sum(step.seconds for step in self._steps)
        return Timings(
            wall_seconds=wall, unaccounted_seconds=wall - accounted, steps=tuple(self._steps)
        )


def run_steps(
    operation: str,
    steps: Sequence[Step[State]],
    state: State,
    *,
    listener: Listener | None = None,
    stopwatch: Stopwatch | None = None,
    cancelled: threading.Event | None = None,
) -> Timings:
    """Run `steps` in order on `state` and return what each took.

    When a step raises, every step that has started is undone in reverse order and the exception goes
    on to the caller. KeyboardInterrupt counts as a failure: an interrupted operation is undone too. An
    operation in another thread than the main one gets no KeyboardInterrupt; there `cancelled` raises
    Cancelled before the next step and after the last one.
    """
    tell = listener or nobody
    stopwatch = stopwatch or Stopwatch()
    with ExitStack() as undo:
        for step in steps:
            _check(cancelled)
            if step.when is not None and not step.when(state):
                continue
            tell(StepStarted(operation=operation, step=step.id, title=step.title))
            if step.undo is not None:
                undo.callback(_undo, operation, step, step.undo, state, tell)
            start = time.monotonic()
            try:
                moved = step.run(state)
            except BaseException as error:
                tell(
                    StepFailed(
                        operation=operation,
                        step=step.id,
                        title=step.title,
                        seconds=time.monotonic() - start,
                        message=str(error),
                    )
                )
                raise
            seconds = time.monotonic() - start
            stopwatch.add(StepTiming(id=step.id, name=step.title, seconds=seconds, bytes=moved))
            tell(
                StepFinished(
                    operation=operation,
                    step=step.id,
                    title=step.title,
                    seconds=seconds,
                    bytes=moved,
                )
            )
        _check(cancelled)
        undo.pop_all()
    return stopwatch.read()


def _check(cancelled: threading.Event | None) -> None:
    if cancelled is not None and cancelled.is_set():
        raise Cancelled


def _undo(
    operation: str,
    step: Step[State],
    undo: Callable[[State], None],
    state: State,
    tell: Listener,
) -> None:
    undo(state)
    tell(StepUndone(operation=operation, step=step.id, title=step.title))
