"""A stand-in for an engine in a pod: HTTP on PORT, and an inner pair like Gloo's over a listener on INNER.

Every GET is answered with how many there were and whether the pair carries bytes. With a NAME it also
listens on that abstract unix name.

    python http_pair.py PORT INNER [NAME]
"""

from __future__ import annotations

import json
import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def echo(port: int) -> None:
    """The child: the dialling end of the pair."""
    with socket.create_connection(("127.0.0.1", port)) as far:
        while data := far.recv(1):
            far.sendall(data)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    pair: socket.socket
    count = 0

    def do_GET(self) -> None:
        Handler.count += 1
        self.pair.sendall(b"?")
        alive = self.pair.recv(1) == b"?"
        body = json.dumps({"count": Handler.count, "pair": alive, "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main(port: int, inner: int, name: str = "") -> None:
    listener = socket.create_server(("127.0.0.1", inner))
    if os.fork() == 0:
        listener.close()
        echo(inner)
        os._exit(0)
    Handler.pair, _ = listener.accept()
    abstract = socket.socket(socket.AF_UNIX)
    if name:
        abstract.bind(f"\0{name}")
        abstract.listen()
    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
