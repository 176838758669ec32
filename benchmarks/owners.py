"""Whose time the steps of an operation are: CRIU's, the engine's, the disk's, or cria's own."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from benchmarks.document import Owner, Spread, StepShare
from cria.events import Timings


class Ownership(msgspec.Struct, frozen=True, kw_only=True):
    """Who spends the time of an operation's steps, by their ids. A step that is not listed is cria's own.

    `pause` holds the steps during which a dumped engine serves nobody.
    """

    owners: dict[str, Owner]
    pause: frozenset[str] = frozenset()

    def owner(self, step: str) -> Owner:
        return self.owners.get(step, "own")


DUMP = Ownership(
    owners={
        "record-canary": "engine",
        "quiesce-engine": "engine",
        "drop-caches": "engine",
        "write-images": "criu",
        "compress-pages": "disk",
        "digest-parts": "disk",
        "end-engine": "criu",
        "clean-up": "criu",  # it waits until the kernel has ended the processes that CRIU killed
    },
    pause=frozenset(
        {
            "quiesce-engine",
            "hooks-at-still-point",
            "drop-caches",
            "sleep-engine",
            "save-gpu-memory",
            "write-images",
            "save-files",
            "check-images",
            "resume-engine",
        }
    ),
)
RESTORE = Ownership(
    owners={
        "restore-processes": "criu",
        "start-processes": "criu",
        "resume-engine": "engine",
        "wait-healthy": "engine",
        "verify-canary": "engine",
    }
)


def own_seconds(timings: Timings, ownership: Ownership) -> float:
    """Return the time that neither CRIU nor the engine nor the disk spent."""
    own = sum(step.seconds for step in timings.steps if ownership.owner(step.id) == "own")
    return own + timings.unaccounted_seconds


def own_seconds_in_pause(timings: Timings, ownership: Ownership) -> float:
    """Return cria's own time in the steps during which the engine serves nobody."""
    return sum(
        step.seconds
        for step in timings.steps
        if step.id in ownership.pause and ownership.owner(step.id) == "own"
    )


def shares(runs: Iterable[Timings], ownership: Ownership) -> tuple[StepShare, ...]:
    """Return each step with what it took in all runs, in the order of the steps."""
    names: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    for timings in runs:
        for step in timings.steps:
            names[step.id] = step.name
            seconds.setdefault(step.id, []).append(step.seconds)
    return tuple(
        StepShare(
            name=names[step],
            owner=ownership.owner(step),
            in_pause=step in ownership.pause,
            seconds=Spread.over(values),
        )
        for step, values in seconds.items()
    )
