"""A server with the HTTP API of an engine that starts in a second: vllm serve --port=PORT.

Copied as `vllm` it is an engine to cria. It streams a token each 5 ms, always the same tokens; with
`--sound-for=N` only the first N requests that are not streamed get these.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STEP_SECONDS = 0.005
answered = itertools.count()
MEMORY = bytearray(b"weights") * (4 << 20)  # so that the images have a size


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "stand-in"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens = list(range(request["max_tokens"]))
        if request.get("stream"):
            self._stream(tokens)
            return
        if next(answered) >= int(option("--sound-for", "1000")):
            tokens.reverse()
        choice = {"text": "x" * len(tokens), "token_ids": tokens}
        choice["logprobs"] = {"token_logprobs": [-1.0] * len(tokens)}
        self._answer({"choices": [choice]})

    def _stream(self, tokens: list[int]) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for token in tokens:
            time.sleep(STEP_SECONDS)
            self.wfile.write(f"data: {json.dumps({'token': token})}\n\n".encode())
        self.close_connection = True

    def _answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def option(name: str, default: str = "") -> str:
    values = (a.partition("=")[2] for a in sys.argv if a.startswith(f"{name}="))
    return next(values, default)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler)
    server.daemon_threads = True
    server.serve_forever()
