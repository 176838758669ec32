"""What a listener may be told while an operation runs. Steps never print: they send these."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


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


def nobody(_event: Event) -> None:
    """The listener of a caller who does not listen."""
