"""The canary is recorded and compared, here with a server that answers as vLLM does, and every failure is an error."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cria.engine import canary
from cria.errors import CanaryMismatch, EngineFailed, Unhealthy
from cria.model.manifest import Canary


class FakeApi:
    """The answers of the server, for a test to change, and the last request."""

    def __init__(self) -> None:
        self.status = 200
        self.tokens: list[int] | None = [5, 3, 8]
        self.logprobs: list[float] = [-1.5, -0.25, -2.0]
        self.delay = 0.0
        self.key: str | None = None
        self.request: dict[str, Any] = {}
        self.url = ""

    def completion(self) -> dict[str, Any]:
        logprobs = {"token_logprobs": self.logprobs}
        return {"choices": [{"text": "…", "token_ids": self.tokens, "logprobs": logprobs}]}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    fake = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"data": [{"id": "any-model"}]})

        def do_POST(self) -> None:
            fake.request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(fake.delay)
            self._answer(fake.status, fake.completion())

        def _answer(self, status: int, body: object) -> None:
            if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                status = 401
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(text)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    yield fake
    server.shutdown()
    server.server_close()


def record(api: FakeApi) -> Canary:
    recorded = canary.record(api.url, seconds=5)
    assert recorded is not None
    return recorded


def test_the_canary_is_a_short_greedy_generation_of_the_first_model(api: FakeApi) -> None:
    recorded = record(api)

    assert recorded.tokens == (5, 3, 8)
    assert recorded.logprobs == (-1.5, -0.25, -2.0)
    assert api.request["model"] == "any-model"
    assert api.request["temperature"] == 0
    assert api.request["max_tokens"] == canary.TOKENS


def test_the_same_tokens_with_other_rounding_pass(api: FakeApi) -> None:
    before = record(api)
    api.logprobs = [value + canary.TOLERANCE / 2 for value in api.logprobs]

    canary.compare(api.url, before, seconds=5)


def test_another_token_is_a_mismatch_that_names_both(api: FakeApi) -> None:
    before = record(api)
    api.tokens = [5, 3, 9]

    with pytest.raises(CanaryMismatch) as caught:
        canary.compare(api.url, before, seconds=5)

    assert "5 3 8" in str(caught.value.details)
    assert "5 3 9" in str(caught.value.details)


@pytest.mark.parametrize("value", [-2.0 - 2 * canary.TOLERANCE, float("nan")])
def test_the_same_tokens_with_another_probability_are_a_mismatch(
    api: FakeApi, value: float
) -> None:
    before = record(api)
    api.logprobs = [-1.5, -0.25, value]

    with pytest.raises(CanaryMismatch, match="does not compute"):
        canary.compare(api.url, before, seconds=5)


def test_missing_log_probabilities_are_a_mismatch(api: FakeApi) -> None:
    before = record(api)
    api.logprobs = []

    with pytest.raises(CanaryMismatch):
        canary.compare(api.url, before, seconds=5)


def test_an_engine_that_does_not_generate_has_no_canary(api: FakeApi) -> None:
    api.status = 404

    assert canary.record(api.url, seconds=5) is None


@pytest.mark.parametrize("status", [400, 500])
def test_an_engine_that_fails_on_the_canary_is_an_error_with_a_remedy(
    api: FakeApi, status: int
) -> None:
    api.status = status

    with pytest.raises(EngineFailed) as caught:
        canary.record(api.url, seconds=5)

    assert "--no-canary" in str(caught.value.remedy)
    assert str(status) in str(caught.value.details)


def test_an_answer_without_token_ids_is_an_error(api: FakeApi) -> None:
    api.tokens = None

    with pytest.raises(EngineFailed, match="token ids"):
        canary.record(api.url, seconds=5)


def test_an_engine_that_is_too_slow_fails_at_the_deadline(api: FakeApi) -> None:
    api.delay = 2.0
    begin = time.monotonic()

    with pytest.raises(EngineFailed):
        canary.record(api.url, seconds=0.2)

    assert time.monotonic() - begin < 1.0


def test_without_an_answer_after_a_restore_the_engine_is_unhealthy_with_a_remedy(
    api: FakeApi,
) -> None:
    before = record(api)
    api.status = 500

    with pytest.raises(Unhealthy) as caught:
        canary.compare(api.url, before, seconds=5)

    assert "--no-canary" in str(caught.value.remedy)


def test_the_api_key_in_the_environment_is_sent(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.key = "key"
    with pytest.raises(EngineFailed, match="canary"):
        canary.record(api.url, seconds=5)

    monkeypatch.setenv("VLLM_API_KEY", "key")

    assert record(api).tokens == (5, 3, 8)
