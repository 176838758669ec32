"""A client that reads tokens as they are generated, and knows how long it waited for each."""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from types import TracebackType

from cria.engine.http_api import PROMPT

TOKENS = 900  # of one request; then the next is begun
SECONDS = 120.0
SETTLE = 20  # gaps until what is usual is known


class Client:
    """Streams in a thread of its own from `with` to its end; `trouble` is what went wrong, if anything."""

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        self._arrivals: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.trouble: str | None = None

    def __enter__(self) -> Client:
        self._thread.start()
        self._wait_for(SETTLE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._wait_for(len(self._arrivals) + SETTLE)
        self._over.set()
        self._thread.join(timeout=SECONDS)

    @property
    def pause(self) -> float | None:
        """The longest gap less the usual one, in seconds; None where the client saw no end of it."""
        arrivals = list(self._arrivals)
        if self.trouble or len(arrivals) < 2 * SETTLE:
            return None
        gaps = [after - before for before, after in pairwise(arrivals)]
        return max(gaps) - statistics.median(gaps)

    def _wait_for(self, count: int, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while len(self._arrivals) < count and not self.trouble:
            if time.monotonic() > deadline:
                self.trouble = f"no token came for {seconds:g} s"
            time.sleep(0.01)

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                for _ in self._tokens():
                    self._arrivals.append(time.monotonic())
                    if self._over.is_set():
                        return
        except (OSError, http.client.HTTPException) as error:
            self.trouble = f"the connection broke: {error or type(error).__name__}"

    def _tokens(self) -> Iterator[bytes]:
        """Each event of one streamed completion."""
        connection = http.client.HTTPConnection(self._url.removeprefix("http://"), timeout=SECONDS)
        wish = {
            "model": self._model,
            "prompt": PROMPT,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(wish), headers)
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise http.client.HTTPException(f"status {answer.status}")
            while line := answer.readline():
                if line.startswith(b"data: {"):
                    yield line
        finally:
            connection.close()
