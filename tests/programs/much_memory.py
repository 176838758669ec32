"""Much memory whose every byte is known: `python much_memory.py PORT MIB [locked]`.

One line per connection is a command, and its answer one line of JSON: `check` compares every byte and says
how many were wrong, `touch N` reads a page in each of N MiB, the others change mappings as programs do.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import socket
import sys
import time
from typing import Any

MIB = 1 << 20
MREMAP_MAYMOVE = 1
MCL_CURRENT, MCL_FUTURE = 1, 2

libc = ctypes.CDLL(None, use_errno=True)
libc.mremap.restype = libc.mmap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def pattern(number: int) -> bytes:
    """What MiB `number` holds: every fourth nothing but zeros, every other its own."""
    if number % 4 == 3:
        return bytes(MIB)
    return hashlib.shake_128(number.to_bytes(8, "little")).digest(4096) * 256


def allocate(size: int) -> int:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return int(libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0))


class Memory:
    """One mapping for each 16 MiB, so that one can move without the others."""

    def __init__(self, mib: int) -> None:
        self.places = [allocate(16 * MIB) for _ in range(mib // 16)]
        self.empty: set[int] = set()
        for number in range(mib):
            ctypes.memmove(self.address(number), pattern(number), MIB)

    @property
    def mib(self) -> int:
        return 16 * len(self.places)

    def address(self, number: int) -> int:
        return self.places[number // 16] + number % 16 * MIB

    def wrong(self) -> list[int]:
        """The MiB that do not hold what they should."""
        return [
            number
            for number in range(self.mib)
            if ctypes.string_at(self.address(number), MIB)
            != (bytes(MIB) if number in self.empty else pattern(number))
        ]

    def check(self) -> dict[str, Any]:
        return {"wrong": self.wrong(), "of": self.mib}

    def touch(self, count: int) -> dict[str, Any]:
        begin = time.monotonic()
        for number in range(count):
            ctypes.string_at(self.address(number % self.mib) + number * 4096 % MIB, 64)
        return {"seconds": time.monotonic() - begin}

    def give_back(self) -> dict[str, Any]:
        """madvise(MADV_DONTNEED) on the second half of MiB 20: it reads as zeros from then on."""
        at = self.address(20)
        libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(MIB), 4)
        self.empty.add(20)
        return {}

    def move(self) -> dict[str, Any]:
        """mremap(2) the last mapping to where there is room for twice its size."""
        at = libc.mremap(self.places[-1], 16 * MIB, 32 * MIB, MREMAP_MAYMOVE)
        assert at not in (None, ctypes.c_void_p(-1).value, self.places[-1])
        self.places[-1] = at
        return {}

    def exchange(self) -> dict[str, Any]:
        """Unmap one mapping and make a new one in its place, which is empty."""
        at = self.places[3]
        libc.munmap(at, 16 * MIB)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
        again = libc.mmap(at, 16 * MIB, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert again == at
        self.empty |= set(range(48, 64))
        return {}

    def fork(self) -> dict[str, Any]:
        """A child misses what its parent misses; it compares every byte too."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(theirs, json.dumps(self.check()).encode())
            os._exit(0)
        os.close(theirs)
        _, status = os.waitpid(pid, 0)
        said = os.read(ours, 1 << 16) or b"{}"
        return {"status": status, **json.loads(said)}

    def outlive(self) -> dict[str, Any]:
        """Go on in a child alone, while its parent ends."""
        if os.fork():
            os._exit(0)
        return {"pid": os.getpid()}


def main() -> None:
    port, mib = map(int, sys.argv[1:3])
    memory = Memory(mib)
    if "locked" in sys.argv:
        assert libc.mlockall(MCL_CURRENT | MCL_FUTURE) == 0
    listener = socket.create_server(("127.0.0.1", port))
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            name, *words = connection.makefile().readline().split()
            answer = getattr(memory, name)(*map(int, words))
            connection.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
