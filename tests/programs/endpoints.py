"""Sockets of one kind on PORT: endpoints.py pair|queued|mapped|group|udp|outside PORT.

Every connection is answered with one line: "alive" when the program's inner connection still carries
bytes, "alone" where it has none.
"""

from __future__ import annotations

import os
import socket
import sys
import time


def listening(family: int, address: str, port: int, *options: int) -> socket.socket:
    sock = socket.socket(family)
    for option in (socket.SO_REUSEADDR, *options):
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((address, port))
    sock.listen(64)
    return sock


def echo(port: int, queued: bool) -> None:
    """The child: the dialling end of the inner connection."""
    with socket.create_connection(("127.0.0.1", port)) as inner:
        if queued:
            inner.sendall(b"?" * 1000)
        while data := inner.recv(1):
            inner.sendall(data)


def serve(outer: socket.socket, inner: socket.socket | None) -> None:
    while True:
        client, _ = outer.accept()
        with client:
            client.sendall(b"alive\n" if inner and round_trip(inner) else b"alone\n")


def round_trip(inner: socket.socket) -> bool:
    inner.sendall(b"!")
    while (answer := inner.recv(1)) == b"?":
        pass
    return answer == b"!"


def with_pair(family: int, address: str, port: int, queued: bool) -> None:
    outer = listening(family, address, port)
    if os.fork() == 0:
        outer.close()
        echo(port, queued)
        os._exit(0)
    inner, _ = outer.accept()
    if queued:
        time.sleep(0.2)
    print("ready", flush=True)
    serve(outer, inner)


def group(port: int) -> None:
    outer = listening(socket.AF_INET, "127.0.0.1", port, socket.SO_REUSEPORT)
    if os.fork() == 0:
        outer.close()
        serve(listening(socket.AF_INET, "127.0.0.1", port, socket.SO_REUSEPORT), None)
    time.sleep(0.2)
    print("ready", flush=True)
    serve(outer, None)


def udp(port: int) -> None:
    outer = listening(socket.AF_INET, "127.0.0.1", port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        if os.fork() == 0:
            outer.close()
            inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            inner.connect(("127.0.0.1", port))
            while True:
                inner.send(b"tick")
                time.sleep(0.02)
        print("ready", flush=True)
        while True:
            client, _ = outer.accept()
            sock.settimeout(2)
            with client:
                client.sendall(b"alive\n" if sock.recv(9) == b"tick" else b"alone\n")


def outside(port: int) -> None:
    """A connection of which the test holds the other end."""
    outer = listening(socket.AF_INET, "127.0.0.1", port)
    print("ready", flush=True)
    client, _ = outer.accept()
    while True:
        read = client.recv(100)
        print("hung up" if not read else "read", flush=True)
        if not read:
            break
    serve(outer, None)


def main(kind: str, port: int) -> None:
    if kind == "mapped":
        with_pair(socket.AF_INET6, "::", port, queued=False)
    elif kind in {"pair", "queued"}:
        with_pair(socket.AF_INET, "127.0.0.1", port, queued=kind == "queued")
    else:
        {"group": group, "udp": udp, "outside": outside}[kind](port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
