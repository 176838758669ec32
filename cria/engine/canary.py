"""Prove that a restored engine computes what it computed before: a short greedy generation, compared."""

from __future__ import annotations

import http.client
import json
import os
import time
from typing import Any

import msgspec

from cria.engine import health
from cria.errors import CanaryMismatch, EngineFailed, Unhealthy
from cria.model.inventory import Inventory
from cria.model.manifest import Canary

PROMPT = "an engine is frozen here and wakes up there"
TOKENS = 4
SECONDS = 30.0  # behind a queue of requests it has to wait its turn
# Batched with other requests the same engine computes log-probabilities that differ by rounding, in
# 16 bits by about a hundredth; memory that is wrong moves them by whole units.
TOLERANCE = 0.05
_WITHOUT = "do without it: --no-canary"


def before_dump(inventory: Inventory, *, wanted: bool) -> tuple[Canary | None, str | None]:
    """A canary of the engine, or why there is none. Raises EngineFailed."""
    published = inventory.published() if inventory.is_engine else ()
    if not wanted:
        return None, "not wanted: --no-canary"
    if not published:
        return None, "no HTTP API"
    try:
        canary = record(health.url(published[0].local), seconds=SECONDS)
    except EngineFailed as error:
        error.details = "\n".join([error.details or "", *health.process_states(inventory)])
        raise
    return canary, None if canary else "the engine does not generate text"


def record(url: str, *, seconds: float) -> Canary | None:
    """Generate with whatever model the engine serves; None where it does not generate text.

    Raises EngineFailed when there is no whole answer within `seconds`.
    """
    try:
        generation = _generate(url, seconds)
    except RouteMissing:
        return None
    except Unhealthy as error:
        raise EngineFailed(
            f"the engine at {url} did not answer the canary before the dump",
            details=f"{error.message}\n{error.details or ''}".strip(),
            remedy=_WITHOUT,
        ) from error
    if not generation.tokens:
        raise EngineFailed(
            f"the engine at {url} answered the canary without token ids",
            details="vLLM gives them on return_token_ids since 0.10",
            remedy=_WITHOUT,
        )
    return Canary(
        prompt=PROMPT,
        tokens=generation.tokens,
        logprobs=generation.logprobs,
        seconds=generation.seconds,
    )


def compare(url: str, recorded: Canary, *, seconds: float) -> None:
    """Generate again and compare. Raises CanaryMismatch, or Unhealthy when there is no whole answer."""
    try:
        now = _generate(url, seconds, prompt=recorded.prompt, tokens=len(recorded.tokens))
    except Unhealthy as error:
        error.remedy = _WITHOUT
        raise
    different = differences(recorded, now)
    if different:
        raise CanaryMismatch(
            f"the engine restored at {url} does not compute what it computed before its dump",
            details="\n".join(different),
        )


def differences(recorded: Canary, now: Generation) -> list[str]:
    """What differs between two generations, in words; nothing when they are the same."""
    if recorded.tokens != now.tokens:
        return [f"tokens before: {_row(recorded.tokens)}", f"tokens after:  {_row(now.tokens)}"]
    if len(recorded.logprobs) != len(now.logprobs):
        return [f"{len(recorded.logprobs)} log-probabilities before, {len(now.logprobs)} after"]
    return [
        f"log-probability of token {place}: {before:.4f} before, {after:.4f} after"
        for place, (before, after) in enumerate(zip(recorded.logprobs, now.logprobs, strict=True))
        if not abs(before - after) <= TOLERANCE  # a NaN is a difference too
    ]


def _generate(
    url: str, seconds: float, *, prompt: str = PROMPT, tokens: int = TOKENS
) -> Generation:
    return generate(url, tokens=tokens, prompt=prompt, timeout=seconds, logprobs=True)


def _row(tokens: tuple[int, ...]) -> str:
    return " ".join(map(str, tokens)) or "none"


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What a greedy generation gave; `seconds` is from the request to the whole answer."""

    tokens: tuple[int, ...]
    text: str
    seconds: float
    logprobs: tuple[float, ...] = ()


class RouteMissing(Unhealthy):
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
        kind = RouteMissing if answer.status == http.client.NOT_FOUND else Unhealthy
        said = text.decode(errors="replace")[:400]
        raise kind(f"{url}{path} answered {answer.status}", details=said)
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unhealthy(f"{url}{path} answered something that is no JSON") from error
