"""Two processes that hold a device as CUDA does: `python gpu_ranks.py PORT DEVICE`.

The test's stand-in for the driver tells them by signals to let go of it (SIGUSR1: what lay there is in the
process then) and to open it again (SIGUSR2). The first answers on PORT, in one line, what each holds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

SIZE = 32 << 20


class Rank:
    """What one process has on its GPU, or on the host."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.opened: int | None = os.open(device, os.O_RDWR)
        self.taken: bytearray | None = None
        self.times = 0

    def let_go(self, *_: Any) -> None:
        self.taken = bytearray(os.urandom(1 << 20) * (SIZE >> 20))
        os.close(self.opened)  # type: ignore[arg-type]
        self.opened = None

    def take_back(self, *_: Any) -> None:
        self.taken, self.times = None, self.times + 1
        self.opened = os.open(self.device, os.O_RDWR)

    def state(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "on_gpu": self.opened is not None, "given_back": self.times}


def main() -> None:
    port, device = int(sys.argv[1]), sys.argv[2]
    ours, theirs = socket.socketpair()
    child = os.fork()
    rank = Rank(device)
    signal.signal(signal.SIGUSR1, rank.let_go)
    signal.signal(signal.SIGUSR2, rank.take_back)
    if child == 0:
        while theirs.recv(1):
            theirs.sendall(json.dumps(rank.state()).encode() + b"\n")
        return
    server = socket.create_server(("127.0.0.1", port))
    other = ours.makefile()
    ours.sendall(b"?")
    other.readline()  # it has opened the device too
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            connection.makefile().readline()
            ours.sendall(b"?")
            both = [rank.state(), json.loads(other.readline())]
            connection.sendall(json.dumps({"ranks": both}).encode() + b"\n")


if __name__ == "__main__":
    main()
