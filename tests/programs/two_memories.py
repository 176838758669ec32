"""A process with much memory and a child with little: `python two_memories.py PORT MIB`.

With 0 MiB there is only the process with little memory. That process answers each connection: it reads all
its memory, then touches a page that it never had, and answers in JSON how many seconds each took.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import sys
import time

PAGE = mmap.PAGESIZE
ROOM = 8 << 20
STEP = 128 << 10  # more than cria loads with one page


def read_all(except_for: range) -> None:
    with open("/proc/self/maps") as file:
        lines = [line.split(None, 5) for line in file]
    for addresses, flags, *rest in lines:
        if flags[0] == "r" and flags[3] == "p" and not rest[-1].startswith("[v"):
            start, end = (int(word, 16) for word in addresses.split("-"))
            for address in range(start, end, PAGE):
                if address not in except_for:
                    ctypes.string_at(address, 1)


def main() -> None:
    port, mib = map(int, sys.argv[1:])
    listener = socket.create_server(("127.0.0.1", port))
    if mib and os.fork():
        much = bytearray(os.urandom(1 << 20) * mib)
        print("ready", flush=True)
        while much:
            time.sleep(1)
    room = mmap.mmap(-1, ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room[0] = 1
    begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
    never_had = range(begin + PAGE, begin + ROOM, PAGE)
    if not mib:
        print("ready", flush=True)
    for offset in range(STEP, ROOM, STEP):
        connection, _ = listener.accept()
        with connection:
            then = time.monotonic()
            read_all(never_had)
            between = time.monotonic()
            room[offset] = 1
            seconds = {"read": between - then, "touched": time.monotonic() - between}
            connection.sendall(json.dumps(seconds).encode() + b"\n")


if __name__ == "__main__":
    main()
