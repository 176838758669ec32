"""Let vLLM's processes sleep where they would spin, after an engine wakes up and where processors are too few.

vLLM's engine core and workers spin for a second after each message, and call sched_yield meanwhile (SpinCondition
in shm_broadcast.py). Two of them keep two processors from all else for seconds, the kernel's own threads included:
from the last steps of a dump, from clones that wake up beside this engine, whose memory has to be touched first. So
a process sleeps 0.2 ms instead for its first 5000 waits. Waits are counted, not timed, as the clock runs on between
a dump and a restore. To shorten the spinning itself would make vLLM lose its wake-up and wait for 5 s.

Where an engine has more processes than processors it sleeps all the time: two that spin keep two processors from the
API server, and from cria, for seconds.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

BACKOFF_MICROSECONDS = 200
BACKOFF_COUNT = 5_000  # more than a second of waiting

# Not time.sleep(), which waits for a moment: an engine that is restored where the clock is behind would sleep until then.
usleep = ctypes.CDLL(None).usleep
_left = 0
_processes = 0


def patch() -> None:
    """Replace the sched_yield that vLLM spins with; a vLLM that waits in another way stays as it is."""
    from vllm.distributed.device_communicators import shm_broadcast

    spin = getattr(shm_broadcast, "sched_yield", None)
    if spin is not None and not hasattr(spin, "backs_off"):
        shm_broadcast.sched_yield = with_backoff(spin)


def with_backoff(spin: Callable[[], None]) -> Callable[[], None]:
    """Return a function that sleeps while back-offs are left, and then calls `spin`."""

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
    """Start to back off in an engine core, whose method this is; a worker starts by itself."""
    start(process_count(self.vllm_config))


def start(processes: int = 0, count: int = BACKOFF_COUNT) -> None:
    """Sleep instead of the next `count` spins of this process; go on so while `processes` oversubscribe the host."""
    global _left, _processes
    _left, _processes = count, processes


def oversubscribed() -> bool:
    """Say whether the engine has more processes than processors, which another host may have more or fewer of."""
    return len(os.sched_getaffinity(0)) < _processes


def process_count(config: Any) -> int:
    """Count the processes of an engine on this host that want a processor each: API server, cores and workers."""
    parallel = config.parallel_config
    return int(1 + parallel.data_parallel_size_local * (1 + parallel.local_world_size))
