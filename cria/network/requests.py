"""What a user asks of the ports, parsed from the command line or from Python."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Literal, get_args

import msgspec

from cria.errors import PortPlanRefused, UsageError

Mode = Literal["as-needed", "keep", "auto", "fresh", "offset"]
Asked = Mapping[int, int | range | Iterable[int]] | str | Iterable[str]

HIGHEST = 65535
LOWEST_UNPRIVILEGED = 1024

_PAIR = re.compile(r"(?P<old>\d+)\s*[=:]\s*(?P<first>\d+)(?:\s*(?:\.\.|-)\s*(?P<last>\d+))?$")


class PortRequests(msgspec.Struct, frozen=True, kw_only=True):
    """Which port goes where, and what becomes of the others.

    `ports` gives the new ports of an old one, one for each clone. `mode` is for ports not named there:
    `as-needed` moves a port of the engine's inner life when it is taken and leaves the published ones
    alone, `keep` moves nothing, `auto` moves whatever is taken, `fresh` moves everything, `offset` adds
    `offset`. `addresses` gives the new address of an old one.
    """

    ports: Mapping[int, tuple[int, ...]] = {}
    mode: Mode = "as-needed"
    offset: int = 0
    addresses: Mapping[str, str] = {}

    @classmethod
    def parse(
        cls, asked: Asked = (), *, mode: str | None = None, addresses: Iterable[str] = ()
    ) -> PortRequests:
        """Read `{8000: 8001}`, `"8000=8001"`, `"8000=8001..8004"`, `"auto"`, `"offset:100"` or several.

        `addresses` are words like `"10.0.0.5=127.0.0.1"`. Raises UsageError for words that do not fit
        and PortPlanRefused for ports that cannot be.
        """
        parts = _words(asked)
        modes = [word for word in parts if "=" not in word and not word[:1].isdigit()]
        ports: dict[int, tuple[int, ...]] = {}
        for word in parts:
            if word not in modes:
                old, new = _pair(word)
                if ports.setdefault(old, new) != new:
                    raise UsageError(f"port {old} is asked to move to two places")
        name, offset = _mode([*modes, *([mode] if mode else [])])
        return cls(ports=ports, mode=name, offset=offset, addresses=dict(map(_address, addresses)))

    def for_clone(self, index: int) -> dict[int, int]:
        """The new port of each named port for the clone `index`, counted from 0."""
        short = [old for old, new in self.ports.items() if index >= len(new)]
        if short:
            old = short[0]
            new = self.ports[old]
            raise PortPlanRefused(
                f"port {old} has {len(new)} new port(s), which is too few for {index + 1} clones",
                remedy=f"give a range: -p {old}={new[0]}..{new[0] + index}",
            )
        return {old: new[index] for old, new in self.ports.items()}


def check_range(old: int, new: int) -> None:
    """Raise PortPlanRefused where `new` is no port, or a privileged one that `old` was not."""
    if not 0 < new <= HIGHEST:
        raise PortPlanRefused(
            f"port {old} cannot become {new}",
            details=f"ports go from 1 to {HIGHEST}",
            remedy=f"choose a port from {LOWEST_UNPRIVILEGED} to {HIGHEST}",
        )
    if new < LOWEST_UNPRIVILEGED <= old:
        raise PortPlanRefused(
            f"port {old} cannot become {new}, which is a privileged port",
            details="the engine bound its ports without privilege",
            remedy=f"choose a port from {LOWEST_UNPRIVILEGED} to {HIGHEST}",
        )


def _words(asked: Asked) -> list[str]:
    if isinstance(asked, str):
        return [word for word in re.split(r"[,\s]+", asked) if word]
    if isinstance(asked, Mapping):
        return [f"{old}={_span(new)}" for old, new in asked.items()]
    return list(asked)


def _span(new: int | range | Iterable[int]) -> str:
    if isinstance(new, int):
        return str(new)
    ports = list(new)
    if not ports or ports != list(range(ports[0], ports[0] + len(ports))):
        raise UsageError(f"{ports} is not a run of ports", remedy="give a range, e.g. 8001..8004")
    return f"{ports[0]}..{ports[-1]}"


def _pair(word: str) -> tuple[int, tuple[int, ...]]:
    match = _PAIR.match(word)
    if match is None:
        raise UsageError(
            f"'{word}' is not a port move",
            remedy="write OLD=NEW or OLD=FIRST..LAST, e.g. 8000=8001",
        )
    old, first = int(match["old"]), int(match["first"])
    last = int(match["last"] or first)
    if last < first:
        raise UsageError(f"'{word}' runs backwards", remedy=f"write {old}={last}..{first}")
    for new in (first, last):
        check_range(old, new)
    return old, tuple(range(first, last + 1))


def _mode(modes: list[str]) -> tuple[Mode, int]:
    if not modes:
        return "as-needed", 0
    if len(set(modes)) > 1:
        raise UsageError(f"{' and '.join(modes)} exclude each other")
    name, _, number = modes[0].partition(":")
    if name == "offset" and re.fullmatch(r"[+-]?\d+", number):
        return "offset", int(number)
    for mode in get_args(Mode):
        if modes[0] == mode != "offset":
            return mode, 0
    raise UsageError(
        f"'{modes[0]}' is no way to choose ports", remedy="write keep, auto, fresh or offset:N"
    )


def _address(word: str) -> tuple[str, str]:
    old, _, new = word.partition("=")
    try:
        before, after = ip_address(old.strip("[]")), ip_address(new.strip("[]"))
    except ValueError as error:
        raise UsageError(
            f"'{word}' is not an address move",
            details=str(error),
            remedy="write OLD=NEW, e.g. 10.0.0.5=127.0.0.1",
        ) from error
    if before.version != after.version:
        raise PortPlanRefused(
            f"address {before} cannot become {after}",
            details="a socket keeps its family, and these differ",
            remedy=f"choose an IPv{before.version} address",
        )
    return str(before), str(after)
