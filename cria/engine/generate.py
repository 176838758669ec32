"""Ask an engine for a deterministic generation over its OpenAI API."""

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
    """What a greedy generation gave; `seconds` is from the request to the whole answer."""

    tokens: tuple[int, ...]
    text: str
    seconds: float
    logprobs: tuple[float, ...] = ()


class NotOffered(Unhealthy):
    """The engine has no such route: one that embeds or ranks does not generate."""


def generate(
    url: str,
    *,
    tokens: int = 16,
    prompt: str = PROMPT,
    timeout: float = 60.0,
    logprobs: bool = False,
) -> Generation:
    """Generate greedily with whatever model the engine serves, with `logprobs` of each token if asked.

    Raises Unhealthy, also when no whole answer has come after `timeout` seconds.
    """
    begin = time.monotonic()
    wish: dict[str, Any] = {
        "model": model_name(url, timeout),
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    if logprobs:
        wish["logprobs"] = 1
    left = max(0.01, timeout - (time.monotonic() - begin))
    answer = _call(url, "/v1/completions", wish, left)
    try:
        choice = answer["choices"][0]
        return Generation(
            tokens=tuple(choice.get("token_ids") or ()),
            text=choice["text"],
            seconds=time.monotonic() - begin,
            logprobs=tuple((choice.get("logprobs") or {}).get("token_logprobs") or ()),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unhealthy(f"{url} answered something that is no completion") from error


def model_name(url: str, timeout: float = 10.0) -> str:
    """The first model the engine names."""
    try:
        return str(_call(url, "/v1/models", None, timeout)["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise Unhealthy(f"{url}/v1/models names no model") from error


def _call(url: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)
    # The name under which vLLM itself reads the key that its clients must show.
    key = os.environ.get("VLLM_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unhealthy(f"{url}{path} does not answer", details=str(error)) from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        kind = NotOffered if answer.status == http.client.NOT_FOUND else Unhealthy
        said = text.decode(errors="replace")[:400]
        raise kind(f"{url}{path} answered {answer.status}", details=said)
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unhealthy(f"{url}{path} answered something that is no JSON") from error
