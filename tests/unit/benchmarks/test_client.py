"""The client that measures a pause, against a server that pauses when the test says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.client import Client

STEP, PAUSE = 0.005, 1.5


class Handler(BaseHTTPRequestHandler):
    paused = threading.Event()

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        for token in range(10_000):
            time.sleep(STEP)
            if self.paused.is_set():
                self.paused.clear()
                time.sleep(PAUSE)
            try:
                self.wfile.write(b'data: {"token": %d}\n\n' % token)
            except OSError:
                return

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_longest_gap_is_the_pause(url: str) -> None:
    with Client(url, "model") as client:
        Handler.paused.set()

    assert client.trouble is None
    assert client.pause is not None
    assert PAUSE * 0.8 < client.pause < PAUSE * 2


def test_without_a_pause_the_longest_gap_is_short(url: str) -> None:
    with Client(url, "model") as client:
        time.sleep(0.2)

    assert client.pause is not None
    assert client.pause < PAUSE / 2


def test_there_is_no_pause_where_no_server_listens() -> None:
    with Client("http://127.0.0.1:1", "model") as client:
        pass

    assert client.pause is None
    assert "refused" in (client.trouble or "")
