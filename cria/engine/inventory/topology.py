"""How an engine is laid out and what it serves, from the titles and the command of its processes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cria.engine.command_line import option_value
from cria.model.inventory import Endpoint, Process, Socket, Topology

_RANK = re.compile(r"(?:^|_)(DP|PP|TP)(\d+)")


def topology(processes: Iterable[Process], published: Iterable[Socket]) -> Topology:
    """Return the sizes of the engine's parallel dimensions, its model and its url.

    vLLM puts a rank into a title only where a dimension is larger than one (0.32).
    """
    found = tuple(processes)
    sizes = _sizes(process.role.name for process in found)
    kinds = [process.role.name.partition("_")[0] for process in found]
    return Topology(
        tensor=sizes.get("TP", 1),
        pipeline=sizes.get("PP", 1),
        data=sizes.get("DP", 1),
        api_servers=sum(kind.startswith("API server") for kind in kinds),
        engine_cores=kinds.count("EngineCore"),
        workers=kinds.count("Worker"),
        model=model(found[0].command),
        url=url(published),
    )


def model(command: tuple[str, ...]) -> str | None:
    """Return the name under which the engine serves its model."""
    named = option_value(command, "--served-model-name") or option_value(command, "--model")
    if named or "serve" not in command:
        return named
    after = command[command.index("serve") + 1 :]
    return after[0] if after and not after[0].startswith("-") else None


def url(published: Iterable[Socket]) -> str | None:
    """Return where a client on this host reaches the first HTTP listener."""
    for socket in published:
        address = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(
            socket.local.address, socket.local.address
        )
        return f"http://{Endpoint(address=address, port=socket.local.port)}"
    return None


def _sizes(names: Iterable[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name in names:
        for dimension, rank in _RANK.findall(name):
            sizes[dimension] = max(sizes.get(dimension, 1), int(rank) + 1)
    return sizes
