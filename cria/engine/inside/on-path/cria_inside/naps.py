"""Processes that wait for each other nap instead of spinning, for the first while after a still point.

vLLM's engine core and workers spin for a second after each message (SpinCondition). When an engine wakes up,
its memory still has to be touched, and others wake up beside it: spinning takes the processors from what it
waits for. How often is counted, and not how long, for the clock runs on between a dump and a restore.
"""

from __future__ import annotations

import time
from collections.abc import Callable

NAP_SECONDS = 0.0002
NAPS = 5_000  # more than a second of waiting

_left = 0


def teach() -> None:
    """Once in each process: whoever spins asks first whether to nap. A vLLM that waits otherwise is left alone."""
    from vllm.distributed.device_communicators import shm_broadcast

    spin = getattr(shm_broadcast, "sched_yield", None)
    if spin is not None and not hasattr(spin, "naps"):
        shm_broadcast.sched_yield = napping(spin)


def napping(spin: Callable[[], None]) -> Callable[[], None]:
    """`spin`, but a nap as long as there are some left."""

    def wait() -> None:
        global _left  # noqa: PLW0603 - read thousands of times a second
        if _left > 0:
            _left -= 1
            time.sleep(NAP_SECONDS)
        else:
            spin()

    wait.naps = True  # type: ignore[attr-defined]
    return wait


def nap(self: object) -> None:  # noqa: ARG001
    """Method of an engine core; a worker begins by itself."""
    begin()


def begin(count: int = NAPS) -> None:
    """The next `count` times that this process would spin it naps."""
    global _left  # noqa: PLW0603
    _left = count
