"""Choose a port for each `--port auto` in an engine's command, and hold it until the engine has started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cria.network.reservation import reserve_any

AUTO = "auto"


@contextmanager
def assign_ports(command: Sequence[str]) -> Iterator[list[str]]:
    """Yield the command with a free port for each option `--port auto`, `--master-port=auto`, ...

    The ports are held until the context ends, so that engines that start at the same moment get different
    ones: an engine that looks for a free port by itself may lose it to another before it listens there.
    """
    arguments = list(command)
    automatic = [index for index in range(len(arguments)) if _is_automatic(arguments, index)]
    with reserve_any(len(automatic)) as ports:
        for index, port in zip(automatic, ports, strict=True):
            name, equals, _ = arguments[index].rpartition("=")
            arguments[index] = f"{name}{equals}{port}"
        yield arguments


def _is_automatic(arguments: Sequence[str], index: int) -> bool:
    name, equals, value = arguments[index].partition("=")
    if equals:
        return value == AUTO and _is_port_option(name)
    return index > 0 and arguments[index] == AUTO and _is_port_option(arguments[index - 1])


def _is_port_option(option: str) -> bool:
    return option.startswith("--") and option.replace("_", "-").endswith(("--port", "-port"))
