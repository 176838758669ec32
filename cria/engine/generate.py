"""Ask an engine for a deterministic generation over its OpenAI API."""

from __future__ import annotations

import http.client
import json
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


def generate(
    url: str, *, tokens: int = 16, prompt: str = PROMPT, timeout: float = 60.0
) -> Generation:
    """Generate greedily with whatever model the engine serves. Raises Unhealthy."""
    begin = time.monotonic()
    answer = _call(
        url,
        "/v1/completions",
        {
            "model": model_name(url),
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        },
        timeout,
    )
    choice = answer["choices"][0]
    return Generation(
        tokens=tuple(choice.get("token_ids") or ()),
        text=choice["text"],
        seconds=time.monotonic() - begin,
    )


def model_name(url: str, timeout: float = 10.0) -> str:
    """The first model the engine names."""
    return str(_call(url, "/v1/models", None, timeout)["data"][0]["id"])


def _call(url: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unhealthy(f"{url}{path} does not answer", details=str(error)) from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        said = text.decode(errors="replace")[:400]
        raise Unhealthy(f"{url}{path} answered {answer.status}", details=said)
    return json.loads(text)
