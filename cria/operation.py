"""Run the steps of an operation in order: time them, tell a listener, undo them in reverse when one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from cria.events import Listener, StepTiming, Timings

Context = TypeVar("Context")


class Step(Generic[Context]):
    """One named part of an operation and, where it changes something, the way back.

    `run` may return the number of bytes it moved. `undo` is called when a later step fails, and also
    when `run` itself fails half-way: it must cope with both. Without `when` the step is always run;
    one that is not wanted is neither run nor told of nor undone.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Context], int | None],
        undo: Callable[[Context], None] | None = None,
        *,
        when: Callable[[Context], bool] | None = None,
    ) -> None:
        self.name = name
        self.run = run
        self.undo = undo
        self.when = when


class Stopwatch:
    """Collects step timings against one wall clock."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._steps: list[StepTiming] = []

    def add(self, name: str, seconds: float, moved: int | None = None) -> None:
        from cria.events import StepTiming

        self._steps.append(StepTiming(name=name, seconds=seconds, bytes=moved))

    def read(self) -> Timings:
        from cria.events import Timings

        wall = time.monotonic() - self._begin
        accounted = sum(step.seconds for step in self._steps)
        return Timings(
            wall_seconds=wall, unaccounted_seconds=wall - accounted, steps=tuple(self._steps)
        )


def run_steps(
    operation: str,
    steps: Sequence[Step[Context]],
    context: Context,
    *,
    listener: Listener | None = None,
    stopwatch: Stopwatch | None = None,
) -> Timings:
    """Run `steps` in order on `context`.

    When a step raises, every step that has begun is undone in reverse order and the exception goes on
    to the caller. KeyboardInterrupt counts as a failure: an interrupted operation is undone too.
    """
    from cria.events import StepFailed, StepFinished, StepStarted, nobody

    listener = listener or nobody
    stopwatch = stopwatch or Stopwatch()
    with ExitStack() as undo:
        for step in steps:
            if step.when is not None and not step.when(context):
                continue
            listener(StepStarted(operation=operation, step=step.name))
            if step.undo is not None:
                undo.callback(_undo, operation, step, context, listener)
            begin = time.monotonic()
            try:
                moved = step.run(context)
            except BaseException as error:
                listener(
                    StepFailed(
                        operation=operation,
                        step=step.name,
                        seconds=time.monotonic() - begin,
                        message=str(error),
                    )
                )
                raise
            seconds = time.monotonic() - begin
            stopwatch.add(step.name, seconds, moved)
            listener(
                StepFinished(operation=operation, step=step.name, seconds=seconds, bytes=moved)
            )
        undo.pop_all()
    return stopwatch.read()


def _undo(operation: str, step: Step[Context], context: Context, listener: Listener) -> None:
    from cria.events import StepUndone

    assert step.undo is not None
    step.undo(context)
    listener(StepUndone(operation=operation, step=step.name))
