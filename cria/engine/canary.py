"""Verify that a restored engine computes what it computed before its dump: the canary is a short greedy generation."""

from __future__ import annotations

from cria.engine.health import process_states
from cria.engine.http_api import PROMPT, Generation, RouteMissing, generate
from cria.errors import CanaryMismatch, EngineFailed, Unhealthy
from cria.model.inventory import Inventory
from cria.model.manifest import Canary

TOKENS = 4
SECONDS = 30.0  # the canary waits behind the requests that are queued
# Batched with other requests the same engine computes log-probabilities that differ by rounding, in
# 16 bits by about a hundredth; memory that is wrong moves them by whole units.
TOLERANCE = 0.05
_REMEDY = "do without it: --no-canary"


def before_dump(inventory: Inventory, *, wanted: bool) -> tuple[Canary | None, str | None]:
    """Return a canary of the engine, or None and the reason. Raises EngineFailed."""
    listeners = inventory.api_listeners() if inventory.is_engine else ()
    if not wanted:
        return None, "not wanted: --no-canary"
    if not listeners:
        return None, "no HTTP API"
    try:
        canary = record(listeners[0].local.http_url, seconds=SECONDS)
    except EngineFailed as error:
        error.details = "\n".join([error.details or "", *process_states(inventory)])
        raise
    return canary, None if canary else "the engine does not generate text"


def record(base_url: str, *, seconds: float) -> Canary | None:
    """Generate with the engine's first model; None where the engine does not generate text.

    Raises EngineFailed when the whole answer has not come after `seconds`.
    """
    try:
        generation = _generate(base_url, seconds)
    except RouteMissing:
        return None
    except Unhealthy as error:
        raise EngineFailed(
            f"the engine at {base_url} did not answer the canary before the dump",
            details=f"{error.message}\n{error.details or ''}".strip(),
            remedy=_REMEDY,
        ) from error
    if not generation.tokens:
        raise EngineFailed(
            f"the engine at {base_url} answered the canary without token ids",
            details="vLLM gives them on return_token_ids since 0.10",
            remedy=_REMEDY,
        )
    return Canary(
        prompt=PROMPT,
        tokens=generation.tokens,
        logprobs=generation.logprobs,
        seconds=generation.seconds,
    )


def compare(base_url: str, recorded: Canary, *, seconds: float) -> None:
    """Generate again and compare. Raises CanaryMismatch, or Unhealthy without a whole answer after `seconds`."""
    try:
        generation = _generate(
            base_url, seconds, prompt=recorded.prompt, tokens=len(recorded.tokens)
        )
    except Unhealthy as error:
        error.remedy = _REMEDY
        raise
    lines = differences(recorded, generation)
    if lines:
        raise CanaryMismatch(
            f"the engine restored at {base_url} does not compute what it computed before its dump",
            details="\n".join(lines),
        )


def differences(recorded: Canary, generation: Generation) -> list[str]:
    """Describe what differs between a canary and a generation; empty when nothing does."""
    if recorded.tokens != generation.tokens:
        return [
            f"tokens before: {_joined(recorded.tokens)}",
            f"tokens after:  {_joined(generation.tokens)}",
        ]
    before, after = recorded.logprobs, generation.logprobs
    if len(before) != len(after):
        return [f"{len(before)} log-probabilities before, {len(after)} after"]
    return [
        f"log-probability of token {place}: {old:.4f} before, {new:.4f} after"
        for place, (old, new) in enumerate(zip(before, after, strict=True))
        if not abs(old - new) <= TOLERANCE  # a NaN is a difference too
    ]


def _generate(
    base_url: str, seconds: float, *, prompt: str = PROMPT, tokens: int = TOKENS
) -> Generation:
    return generate(base_url, tokens=tokens, prompt=prompt, timeout=seconds, logprobs=True)


def _joined(tokens: tuple[int, ...]) -> str:
    return " ".join(map(str, tokens)) or "none"
