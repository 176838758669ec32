"""Bind, listen and release ports as fast as it goes, in every way: hostile_binder.py FIRST LAST."""

from __future__ import annotations

import random
import signal
import socket
import sys


def main(first: int, last: int) -> None:
    listened = tried = 0

    def report(*_: object) -> None:
        print(f"listened {listened} of {tried}", flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, report)
    print("ready", flush=True)
    while True:
        tried += 1
        with socket.socket() as sock:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                sock.setsockopt(socket.SOL_SOCKET, option, random.random() < 0.5)
            try:
                sock.bind((random.choice(("127.0.0.1", "")), random.randint(first, last)))
                sock.listen()
                listened += 1
            except OSError:
                pass


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
