"""A client that reads tokens as an engine generates them, and measures how long it waits for each."""

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

TOKENS_PER_REQUEST = 900
TIMEOUT_SECONDS = 120.0
FIRST_TOKENS_SECONDS = 30.0
SETTLING_TOKENS = 20  # before and after the pause: the median gap has to be the usual one


class Client:
    """A client that reads tokens in a thread of its own, from the beginning of `with` to its end.

    `trouble` says what went wrong, if anything did.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        self._arrivals: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.trouble: str | None = None

    def __enter__(self) -> Client:
        self._thread.start()
        self._wait_for(SETTLING_TOKENS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._wait_for(len(self._arrivals) + SETTLING_TOKENS)
        self._stop.set()
        self._thread.join(timeout=TIMEOUT_SECONDS)

    @property
    def pause(self) -> float | None:
        """The longest gap between two tokens minus the median gap, in seconds.

        None where the client failed, or saw no tokens after the pause.
        """
        arrivals = list(self._arrivals)
        if self.trouble or len(arrivals) < 2 * SETTLING_TOKENS:
            return None
        gaps = [after - before for before, after in pairwise(arrivals)]
        return max(gaps) - statistics.median(gaps)

    def _wait_for(self, tokens: int) -> None:
        deadline = time.monotonic() + FIRST_TOKENS_SECONDS
        while len(self._arrivals) < tokens and not self.trouble:
            if time.monotonic() > deadline:
                self.trouble = f"no token came for {FIRST_TOKENS_SECONDS:g} s"
            time.sleep(0.01)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for _ in self._stream_tokens():
                    self._arrivals.append(time.monotonic())
                    if self._stop.is_set():
                        return
        except (OSError, http.client.HTTPException) as error:
            self.trouble = f"the connection broke: {error or type(error).__name__}"

    def _stream_tokens(self) -> Iterator[bytes]:
        """Request one completion and yield each of its events."""
        address = self._url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
        request = {
            "model": self._model,
            "prompt": PROMPT,
            "max_tokens": TOKENS_PER_REQUEST,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(request), headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise http.client.HTTPException(f"status {response.status}")
            while line := response.readline():
                if line.startswith(b"data: {"):
                    yield line
        finally:
            connection.close()
