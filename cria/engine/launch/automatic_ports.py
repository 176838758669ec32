"""Ports that the user leaves to cria: `--port auto` in an engine's command becomes a number that is held for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

AUTO = "auto"


@contextmanager
def assign_ports(command: Sequence[str]) -> Iterator[list[str]]:
    """The command with a free port for each option `--port auto`, `--master-port=auto`, ...

    The ports are held while the context lasts, so that engines that start at the same moment get
    different ones: an engine that looks for a free port itself finds one, lets it go and loses it.
    """
    from cria.network.reservation import reserve_any

    words = list(command)
    places = [index for index in range(len(words)) if _is_automatic(words, index)]
    with reserve_any(len(places)) as free:
        for index, port in zip(places, free, strict=True):
            name, equals, _ = words[index].rpartition("=")
            words[index] = f"{name}{equals}{port}"
        yield words


def _is_automatic(words: Sequence[str], index: int) -> bool:
    name, equals, value = words[index].partition("=")
    if equals:
        return value == AUTO and _names_a_port(name)
    return index > 0 and words[index] == AUTO and _names_a_port(words[index - 1])


def _names_a_port(option: str) -> bool:
    return option.startswith("--") and option.replace("_", "-").endswith(("--port", "-port"))
