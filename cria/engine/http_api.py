"""Use the HTTP API of an engine: its health, its model, a greedy generation."""

from __future__ import annotations

import http.client
import json
import os
import time
from typing import Any

import msgspec

from cria.errors import Unhealthy

PROMPT = "an engine is frozen here and wakes up there"


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a greedy generation; `seconds` is from the request to the whole answer."""

    tokens: tuple[int, ...]
    text: str
    seconds: float
    logprobs: tuple[float, ...] = ()


class RouteMissing(Unhealthy):
    """The engine has no such route: an engine that embeds or ranks does not generate."""


def is_healthy(base_url: str, *, timeout: float = 2.0) -> bool:
    """Say whether GET /health answers 200 within `timeout` seconds."""
    try:
        status, _ = _exchange("GET", (base_url, "/health"), timeout)
    except (OSError, http.client.HTTPException):
        return False
    return status == http.client.OK


def generate(
    base_url: str,
    *,
    tokens: int = 16,
    prompt: str = PROMPT,
    timeout: float = 60.0,
    logprobs: bool = False,
) -> Generation:
    """Generate `tokens` tokens greedily with the first model of the engine, with their `logprobs` if asked.

    Raises Unhealthy, also when the whole answer has not come after `timeout` seconds.
    """
    begin = time.monotonic()
    request: dict[str, Any] = {
        "model": model_name(base_url, timeout),
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    if logprobs:
        request["logprobs"] = 1
    left = max(0.01, timeout - (time.monotonic() - begin))
    answer = _call(base_url, "/v1/completions", left, request)
    try:
        choice = answer["choices"][0]
        return Generation(
            tokens=tuple(choice.get("token_ids") or ()),
            text=choice["text"],
            seconds=time.monotonic() - begin,
            logprobs=tuple((choice.get("logprobs") or {}).get("token_logprobs") or ()),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unhealthy(f"the answer of {base_url} is no completion") from error


def model_name(base_url: str, timeout: float = 10.0) -> str:
    """Return the name of the first model of the engine. Raises Unhealthy."""
    try:
        return str(_call(base_url, "/v1/models", timeout)["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise Unhealthy(f"{base_url}/v1/models names no model") from error


def _call(base_url: str, path: str, timeout: float, request: dict[str, Any] | None = None) -> Any:
    """Return the JSON answer to a GET, or to a POST of `request`. Raises Unhealthy."""
    # The name under which vLLM itself reads the key that its clients must show.
    key = os.environ.get("VLLM_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        if request is None:
            status, text = _exchange("GET", (base_url, path), timeout, headers)
        else:
            headers["Content-Type"] = "application/json"
            body = json.dumps(request).encode()
            status, text = _exchange("POST", (base_url, path), timeout, headers, body)
    except (OSError, http.client.HTTPException) as error:
        raise Unhealthy(f"{base_url}{path} does not answer", details=str(error)) from error
    if status != http.client.OK:
        kind = RouteMissing if status == http.client.NOT_FOUND else Unhealthy
        details = text.decode(errors="replace")[:400]
        raise kind(f"{base_url}{path} answered {status}", details=details)
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unhealthy(f"the answer of {base_url}{path} is no JSON") from error


def _exchange(
    method: str,
    url: tuple[str, str],
    timeout: float,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, bytes]:
    """Return the status and the body of the answer. Raises OSError and HTTPException."""
    base_url, path = url
    connection = http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
