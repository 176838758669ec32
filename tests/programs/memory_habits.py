"""Memory of all kinds with known content, also in a child, and all that allocators do to it afterwards.

Serves on a TCP port. To `same` it answers whether all memory is as it was filled, to `habits` what came
of reallocating, freeing, trimming, unmapping and sharing it with a child: a name and a bool for each.

    python memory_habits.py PORT
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import socket
import sys
import threading
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
for name in ("malloc", "calloc", "realloc", "mmap", "mremap"):
    getattr(libc, name).restype = ctypes.c_void_p
P, N = ctypes.c_void_p, ctypes.c_size_t
libc.malloc.argtypes, libc.calloc.argtypes, libc.realloc.argtypes = [N], [N, N], [P, N]
libc.free.argtypes, libc.munmap.argtypes, libc.madvise.argtypes = [P], [P, N], [P, N, ctypes.c_int]
libc.mmap.argtypes = [P, N, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes, libc.mprotect.argtypes = [P, N, N, ctypes.c_int], [P, N, ctypes.c_int]

MIB, PAGE = 1 << 20, 4096
READ, WRITE, MAYMOVE, DONTNEED = 1, 2, 1, 4
FAILED = ctypes.c_void_p(-1).value
chance = random.Random(7)
PATTERN = chance.randbytes(MIB)


def filled(at: int, size: int) -> int:
    for begin in range(0, size, MIB):
        ctypes.memmove(at + begin, PATTERN, min(MIB, size - begin))
    return at


def same(at: int, size: int) -> bool:
    pieces = range(0, size, MIB)
    return all(
        ctypes.string_at(at + b, min(MIB, size - b)) == PATTERN[: min(MIB, size - b)]
        for b in pieces
    )


def zero(at: int, size: int) -> bool:
    return ctypes.string_at(at, size) == bytes(size)


def mapped(size: int) -> int:
    at = libc.mmap(None, size, READ | WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert at != FAILED
    return at


# Large enough for malloc to map each by itself; and many small ones in the heap.
LARGE = [
    filled(libc.malloc(size), size) for size in (300 << 10, MIB, 3 * MIB, 5 * MIB, 8 * MIB) * 3
]
SIZES = [300 << 10, MIB, 3 * MIB, 5 * MIB, 8 * MIB] * 3
SMALL = [filled(libc.malloc(50_000), 50_000) for _ in range(600)]
OWN = [filled(mapped(4 * MIB), 4 * MIB) for _ in range(6)]
SPARSE = mapped(16 * MIB)
filled(SPARSE, 2 * MIB)
filled(SPARSE + 9 * MIB, MIB)
LIST, BYTES = list(range(1 << 20)), bytearray(PATTERN * 4)


def all_same() -> bool:
    chunks = zip(LARGE, SIZES, strict=True)
    return (
        all(same(at, size) for at, size in chunks)
        and all(same(at, 50_000) for at in SMALL)
        and all(same(at, 4 * MIB) for at in OWN)
        and same(SPARSE, 2 * MIB)
        and same(SPARSE + 9 * MIB, MIB)
        and zero(SPARSE + 2 * MIB, 7 * MIB)
        and list(range(1 << 20)) == LIST
        and BYTES == PATTERN * 4
    )


OURS, CHILDS = socket.socketpair()


def child() -> None:
    """It has most pages in common with its parent, as fork leaves them, and some of its own."""
    ctypes.memset(OWN[4] + MIB, 0, MIB)
    ctypes.memset(LARGE[9], 0, SIZES[9])
    while CHILDS.recv(1):
        kept = same(OWN[4], MIB) and same(OWN[4] + 2 * MIB, 2 * MIB) and same(LARGE[10], SIZES[10])
        own = zero(OWN[4] + MIB, MIB) and zero(LARGE[9], SIZES[9])
        small = all(same(at, 50_000) for at in SMALL)
        CHILDS.sendall(b"1" if kept and own and small else b"0")
    os._exit(0)


def a_child_of_before_has_what_it_had() -> bool:
    OURS.sendall(b"?")
    return OURS.recv(1) == b"1"


def realloc_grows() -> bool:
    found = True
    for number, factor in enumerate((2, 7, 40)):
        at = libc.realloc(LARGE[number], SIZES[number] * factor)
        found &= same(at, SIZES[number])
        filled(at, SIZES[number] * factor)
        found &= same(at, SIZES[number] * factor)
        LARGE[number], SIZES[number] = at, SIZES[number] * factor
    return found


def realloc_shrinks_and_grows_far() -> bool:
    at = libc.realloc(LARGE[4], MIB)
    far = 3 << 30
    at = libc.realloc(at, far)
    found = same(at, MIB)
    for offset in range(8 * MIB, far, 97 * MIB):
        filled(at + offset, PAGE)
    ctypes.memset(at + far - 1, 1, 1)
    LARGE[4], SIZES[4] = libc.realloc(at, MIB), MIB
    return found


def what_a_mapping_grows_by_is_zero() -> bool:
    """By as much as the kernel gives: far past all that was there at the dump."""
    grown, size = OWN[0], 4 * MIB
    found = True
    for more in (64 * MIB, 1 << 30, 8 << 30):
        at = libc.mremap(grown, size, more, MAYMOVE)
        if at == FAILED:
            return False
        found &= same(at, 4 * MIB) and zero(at + size, 8 * MIB) and zero(at + more - MIB, MIB)
        grown, size = at, more
    filled(grown + size - MIB, MIB)
    found &= same(grown + size - MIB, MIB)
    OWN[0] = libc.mremap(grown, size, 4 * MIB, MAYMOVE)
    return found


def calloc_is_zero() -> bool:
    found = True
    for round_ in range(3):
        for index in (5, 6, 7, 8):
            libc.free(LARGE[index])
        for index in (5, 6, 7, 8):
            at = libc.calloc(1, SIZES[index])
            found &= zero(at, SIZES[index])
            LARGE[index] = filled(at, SIZES[index])
        found &= round_ >= 0
    return found


def calloc_in_a_trimmed_heap_is_zero() -> bool:
    """Holes in the heap and its top are given back, then taken again."""
    for index in [*range(100, 300), *range(400, 600)]:
        libc.free(SMALL[index])
    libc.malloc_trim(0)
    found = True
    for index in [*range(100, 300), *range(400, 600)]:
        at = libc.calloc(1, 50_000)
        found &= zero(at, 50_000)
        SMALL[index] = filled(at, 50_000)
    return found


def a_heap_grows() -> bool:
    more = [filled(libc.malloc(60_000), 60_000) for _ in range(2000)]
    found = all(same(at, 60_000) for at in more)
    for at in more:
        libc.free(at)
    return found and libc.malloc_trim(0) in (0, 1)


def a_child_sees_it_and_leaves_it() -> bool:
    pid = os.fork()
    if pid == 0:
        seen = all(same(at, 50_000) for at in SMALL) and same(OWN[1], 4 * MIB)
        ctypes.memset(OWN[1], 0, 4 * MIB)
        ctypes.memset(SMALL[0], 0, 50_000)
        os._exit(0 if seen and zero(OWN[1], 4 * MIB) else 1)
    ctypes.memset(OWN[2] + MIB, 0, MIB)
    filled(OWN[2] + MIB, MIB)
    _, status = os.waitpid(pid, 0)
    return status == 0 and same(OWN[1], 4 * MIB) and same(SMALL[0], 50_000)


def parts_are_unmapped_and_protected() -> bool:
    at = OWN[3]
    libc.munmap(at + MIB, MIB)
    protected = libc.mprotect(at + 2 * MIB, MIB, READ) == 0
    found = same(at, MIB) and same(at + 2 * MIB, 2 * MIB)
    libc.mprotect(at + 2 * MIB, MIB, READ | WRITE)
    ctypes.memset(at + 2 * MIB, 0, MIB)
    filled(at + 2 * MIB, MIB)
    found &= protected and same(at + 2 * MIB, 2 * MIB)
    libc.munmap(at, MIB)
    libc.munmap(at + 2 * MIB, 2 * MIB)
    OWN[3] = filled(mapped(4 * MIB), 4 * MIB)
    return found


def threads_allocate() -> bool:
    wrong: list[int] = []

    def work(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(50):
            size = own.randrange(PAGE, 2 * MIB)
            at = libc.calloc(1, size)
            if not zero(at, size) or not same(filled(at, size), size):
                wrong.append(size)
            libc.free(at)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return not wrong


def python_grows_and_shrinks() -> bool:
    LIST.extend(range(1 << 20, 3 << 20))
    BYTES.extend(PATTERN * 8)
    found = list(range(3 << 20)) == LIST and BYTES == PATTERN * 12
    del LIST[1 << 19 :]
    del BYTES[MIB:]
    LIST.extend(range(1 << 19, 1 << 20))
    BYTES.extend(PATTERN * 3)
    made = {str(n): [n] for n in range(200_000)}
    return found and sum(len(v) for v in made.values()) == 200_000 and BYTES == PATTERN * 4


def what_was_advised_away_is_not_of_others() -> bool:
    """The one difference there is: it reads as at the dump, not as zero."""
    libc.madvise(OWN[5], 4 * MIB, DONTNEED)
    found = same(OWN[5], 4 * MIB) or zero(OWN[5], 4 * MIB)
    filled(OWN[5], 4 * MIB)
    return found


HABITS: list[Callable[[], bool]] = [
    realloc_grows,
    realloc_shrinks_and_grows_far,
    what_a_mapping_grows_by_is_zero,
    calloc_is_zero,
    calloc_in_a_trimmed_heap_is_zero,
    a_heap_grows,
    a_child_sees_it_and_leaves_it,
    parts_are_unmapped_and_protected,
    threads_allocate,
    python_grows_and_shrinks,
    what_was_advised_away_is_not_of_others,
    a_child_of_before_has_what_it_had,
    all_same,
]


def main() -> None:
    if os.fork() == 0:
        OURS.close()
        child()
    CHILDS.close()
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    assert all_same()
    assert a_child_of_before_has_what_it_had()
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        with client:
            asked = client.recv(100).strip()
            checks = HABITS if asked == b"habits" else [all_same, a_child_of_before_has_what_it_had]
            found = {check.__name__: check() for check in checks}
            client.sendall(json.dumps(found).encode() + b"\n")


if __name__ == "__main__":
    main()
