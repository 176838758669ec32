"""Hold memory of every kind, much of it zero, and tell what is in it: python kinds_of_memory.py PORT FILE

Each connection is answered with a line of JSON: the digest of every region by its name.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import socket
import sys
from pathlib import Path

MIB = 1 << 20
PAGE = mmap.PAGESIZE


def main() -> None:
    port, path = int(sys.argv[1]), Path(sys.argv[2])
    path.write_bytes(b"f" * 4 * MIB)
    regions = made(path)
    if os.fork() == 0:
        regions["patchy"][:PAGE] = (
            b"c" * PAGE
        )  # the rest stays shared with the parent, page by page
        serve(port + 1, regions)
    serve(port, regions)


def made(path: Path) -> dict[str, mmap.mmap]:
    """Regions of 16 MiB; patchy ones have stretches of data between pages that were written as zero."""
    chance = random.Random(7)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    regions = {
        "zero": mmap.mmap(-1, 16 * MIB, flags=private),
        "patchy": mmap.mmap(-1, 16 * MIB, flags=private),
        "full": mmap.mmap(-1, 16 * MIB, flags=private),
        "shared": mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
    }
    with path.open("rb") as file:
        # Zeros here hide what the file holds: they must not be left out.
        regions["file"] = mmap.mmap(file.fileno(), 4 * MIB, flags=mmap.MAP_PRIVATE, prot=3)
    regions["file"][MIB : 3 * MIB] = bytes(2 * MIB)
    regions["zero"][:] = bytes(16 * MIB)
    regions["full"][:] = chance.randbytes(16 * MIB)
    for name in ("patchy", "shared"):
        regions[name][:] = bytes(16 * MIB)
        at = 0
        while at < 15 * MIB:
            size = chance.randrange(1, 40) * PAGE
            regions[name][at : at + size] = chance.randbytes(size)
            at += size + chance.randrange(1, 60) * PAGE
    return regions


def serve(port: int, regions: dict[str, mmap.mmap]) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            with client:
                client.recv(100)
                told = {name: hashlib.blake2b(held).hexdigest() for name, held in regions.items()}
                client.sendall(json.dumps(told).encode() + b"\n")


if __name__ == "__main__":
    main()
