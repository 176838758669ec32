"""Where a runtime's own words in an archive go on naming a port or an address that has moved.

None of it is read when the container is restored: its processes have their arguments and environment
in memory, and the pod brings a specification of its own. It is for people to know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

LONGEST_LIST = 50


class Mention(msgspec.Struct, frozen=True, kw_only=True):
    """`says` is the port or address; `where` the way to it in the JSON of `file`."""

    file: str
    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where} still names {self.says}"


def mentions(
    texts: Mapping[str, bytes], ports: Iterable[int], addresses: Iterable[str] = ()
) -> tuple[Mention, ...]:
    """Where `texts` name any of `ports` and `addresses`, at most LONGEST_LIST of them."""
    wanted = [*map(str, sorted(ports)), *sorted(addresses)]
    if not wanted:
        return ()
    # A number within a longer one, an address or a version is another thing.
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, wanted))})(?![\w.])")
    found: list[Mention] = []
    for file, text in texts.items():
        for where, value in _leaves(_decoded(text)):
            for says in sorted(set(pattern.findall(value))):
                found.append(Mention(file=file, where=where, says=says))
                if len(found) == LONGEST_LIST:
                    return tuple(found)
    return tuple(found)


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None  # what has to be readable was read before


def _leaves(whole: Any) -> Iterator[tuple[str, str]]:
    """Every text in `whole`, and every number that stands under a key that speaks of ports."""
    left: list[tuple[str, Any]] = [("", whole)]
    while left:
        where, value = left.pop()
        match value:
            case dict():
                below = [(f"{where}.{key}" if where else key, each) for key, each in value.items()]
                left.extend(reversed(below))
            case list():
                below = [(f"{where}[{index}]", each) for index, each in enumerate(value)]
                left.extend(reversed(below))
            case str():
                name, equals, rest = value.partition("=")
                variable = where.startswith("process.env[") and bool(equals)
                yield (f"process.env {name}", rest) if variable else (where, value)
            case int() if "port" in where.rpartition(".")[2].lower():
                yield where, str(value)
