"""Short forms of ages, paths and holders for tables of 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cria.inventory import Holder, Role, Topology


def age(seconds: float) -> str:
    """Return an age in its two largest units."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds}s" if minutes else f"{seconds}s"


def middle(text: str, width: int) -> str:
    """Return `text` without its middle where it is longer than `width`."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"


def layout(topology: Topology) -> str:
    """Return the dimensions that are larger than one, and the API servers where there are several."""
    sizes = {"TP": topology.tensor, "PP": topology.pipeline, "DP": topology.data}
    parts = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    parts += [f"API={topology.api_servers}"] if topology.api_servers > 1 else []
    return " ".join(parts) or "TP=1"


def holder(holders: Sequence[Holder], roles: Mapping[int, str], width: int = 20) -> str:
    """Return who holds a socket: PID, descriptor and role of the first, and how many more."""
    if not holders:
        return "-"
    first = holders[0]
    more = f" +{len(holders) - 1}" if len(holders) > 1 else ""
    text = f"{first.pid}:{first.fd}{more} {roles.get(first.pid, '?')}"
    return text if len(text) <= width else f"{text[: width - 1]}…"


def role(each: Role) -> str:
    """Return a role; one that is not certain is said to be likely."""
    return each.name if each.confidence != "likely" else f"{each.name}?"
