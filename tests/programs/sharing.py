"""As generating.py, but what it answered is counted in shared memory too, under a semaphore without a name."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from generating import Generator, main

SIZE = 8 << 20


class Sharing(Generator):
    """The first and the last byte count, so that a file with holes must come back whole."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = SharedMemory(create=True, size=SIZE)
        self._semaphore = multiprocessing.Semaphore(1)

    async def generate(self, steps: int) -> dict[str, int]:
        answer = await super().generate(steps)
        with self._semaphore:
            for place in (0, SIZE - 1):
                self._memory.buf[place] += 1
        return answer

    def state(self) -> dict[str, int]:
        with self._semaphore:
            first, last = self._memory.buf[0], self._memory.buf[SIZE - 1]
        return super().state() | {"first": first, "last": last}


if __name__ == "__main__":
    asyncio.run(main(Sharing()))
