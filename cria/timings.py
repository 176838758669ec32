"""How long an operation took, step by step."""

from __future__ import annotations

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
