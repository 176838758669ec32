"""A small stand-in for an engine: two processes that share what a vLLM engine's processes share.

The parent serves on a TCP port and answers each line with its state as JSON. For each
answer it asks its child over an accepted TCP connection (to the same listener), a unix socket, a pipe and a
shared memory segment, so an answer proves that all four work.

    python little_engine.py PORT DIRECTORY
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
from multiprocessing import shared_memory
from pathlib import Path

HELLO = b"child\n"


def child(port: int, unix_path: str, pipe_in: int, pipe_out: int, segment: str) -> None:
    shared = shared_memory.SharedMemory(segment)
    tcp = socket.create_connection(("127.0.0.1", port))
    tcp.sendall(HELLO)
    unix = socket.socket(socket.AF_UNIX)
    unix.connect(unix_path)
    while True:
        ready = tcp.recv(1)
        if not ready:
            os._exit(1)
        shared.buf[0] = (shared.buf[0] + 1) % 256
        tcp.sendall(ready)
        unix.sendall(unix.recv(1))
        os.write(pipe_out, os.read(pipe_in, 1))


def main() -> None:
    port, directory = int(sys.argv[1]), Path(sys.argv[2])
    unix_path = str(directory / "little.sock")
    Path(unix_path).unlink(missing_ok=True)
    segment = shared_memory.SharedMemory(create=True, size=1 << 20)
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    unix_listener = socket.socket(socket.AF_UNIX)
    unix_listener.bind(unix_path)
    unix_listener.listen()
    to_child, from_child = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        child(port, unix_path, to_child[0], from_child[1], segment.name)
    tcp, _ = listener.accept()
    assert tcp.recv(len(HELLO)) == HELLO
    unix, _ = unix_listener.accept()

    def ask_child(number: int) -> dict[str, object]:
        byte = bytes([number % 256])
        tcp.sendall(byte)
        tcp_ok = tcp.recv(1) == byte
        unix.sendall(byte)
        unix_ok = unix.recv(1) == byte
        os.write(to_child[1], byte)
        pipe_ok = os.read(from_child[0], 1) == byte
        return {"tcp": tcp_ok, "unix": unix_ok, "pipe": pipe_ok, "shared": segment.buf[0]}

    answered = 0
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                client, _ = listener.accept()
                selector.register(client, selectors.EVENT_READ)
                continue
            client = key.fileobj
            line = client.recv(1024)
            if not line:
                selector.unregister(client)
                client.close()
                continue
            answered += 1
            ends = [tcp.getsockname()[1], tcp.getpeername()[1]]
            state = ask_child(answered) | {"answered": answered, "pid": os.getpid(), "ends": ends}
            client.sendall(json.dumps(state).encode() + b"\n")


if __name__ == "__main__":
    main()
