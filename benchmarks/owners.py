"""Whose time the steps of an operation are: CRIU's, the engine's, the disk's, or cria's own."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.document import Owner, Spread, StepShare
from cria.events import Timings

_OWNERS: dict[str, Owner] = {
    "freeze and write memory": "criu",
    "restore the processes": "criu",
    "let it run": "criu",
    "record the canary": "engine",
    "pause the engine": "engine",
    "drop what can be made again": "engine",
    "let its requests go on": "engine",
    "wait until healthy": "engine",
    "compare the canary": "engine",
    "digest every part": "disk",
    "compress the memory": "disk",
    "end it, unless it lives on": "criu",
    "clear what it left": "criu",  # CRIU has said that it ends them; it waits until the kernel has done so
}
FIRST, LAST = "pause the engine", "resume it, if it lives on"


def owner(step: str) -> Owner:
    """Who spends the time of a step. What nobody is known to spend is cria's own."""
    return _OWNERS.get(step, "own")


def own_seconds(timings: Timings) -> float:
    """The time of an operation that neither CRIU nor the engine nor the disk spent."""
    own = sum(step.seconds for step in timings.steps if owner(step.name) == "own")
    return own + timings.unaccounted_seconds


def own_seconds_in_pause(timings: Timings) -> float:
    """The same, only of the steps during which a dumped engine serves nobody."""
    still = _in_pause([step.name for step in timings.steps])
    return sum(s.seconds for s in timings.steps if s.name in still and owner(s.name) == "own")


def shares(runs: Iterable[Timings]) -> tuple[StepShare, ...]:
    """Each step with what it took in all runs, in their order."""
    seconds: dict[str, list[float]] = {}
    for timings in runs:
        for step in timings.steps:
            seconds.setdefault(step.name, []).append(step.seconds)
    still, found = _in_pause(list(seconds)), []
    for name, values in seconds.items():
        spread = Spread.of(values)
        assert spread is not None
        found.append(
            StepShare(name=name, owner=owner(name), in_pause=name in still, seconds=spread)
        )
    return tuple(found)


def _in_pause(names: list[str]) -> set[str]:
    if FIRST not in names or LAST not in names:
        return set()
    return set(names[names.index(FIRST) : names.index(LAST) + 1])
