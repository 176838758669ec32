"""Processes that wait for each other nap instead of spinning, where spinning would take what they wait for.

vLLM's engine core and workers spin for a second after each message (SpinCondition). After a still point memory
has to be touched, and other engines wake up beside this one: so the first waits are naps. How often is counted,
and not how long, for the clock runs on between a dump and a restore. With fewer processors than processes it is
so all the time: two that spin keep two processors from the API server, and from cria, for seconds.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

BACKOFF_MICROSECONDS = 200
BACKOFF_COUNT = 5_000  # more than a second of waiting

# time.sleep() waits for a moment. Frozen in it, and restored where the clock is behind, it sleeps until then.
usleep = ctypes.CDLL(None).usleep
_left = 0
_processes = 0


def patch() -> None:
    """Once in each process: whoever spins asks first whether to nap. A vLLM that waits otherwise is left alone."""
    from vllm.distributed.device_communicators import shm_broadcast

    spin = getattr(shm_broadcast, "sched_yield", None)
    if spin is not None and not hasattr(spin, "backs_off"):
        shm_broadcast.sched_yield = with_backoff(spin)


def with_backoff(spin: Callable[[], None]) -> Callable[[], None]:
    """`spin`, but a nap as long as there are some left."""

    def wait() -> None:
        global _left  # noqa: PLW0603 - read thousands of times a second
        if _left > 0:
            _left -= 1
            if not _left and oversubscribed():
                _left = BACKOFF_COUNT
            usleep(BACKOFF_MICROSECONDS)
        else:
            spin()

    wait.backs_off = True  # type: ignore[attr-defined]
    return wait


def back_off(self: Any) -> None:
    """Method of an engine core; a worker begins by itself."""
    start(process_count(self.vllm_config))


def start(processes: int = 0, count: int = BACKOFF_COUNT) -> None:
    """The next `count` times that this process would spin it naps; longer where `processes` are too many here."""
    global _left, _processes
    _left, _processes = count, processes


def oversubscribed() -> bool:
    """Looked at again and again: an engine may be restored where there are more processors, or fewer."""
    return len(os.sched_getaffinity(0)) < _processes


def process_count(config: Any) -> int:
    """How many processes of an engine here want a processor of their own: its cores, their workers, an API server."""
    parallel = config.parallel_config
    return int(1 + parallel.data_parallel_size_local * (1 + parallel.local_world_size))
