"""The layout of an engine and what it serves: sizes of its parallel dimensions, number of processes, model, URL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cria.engine.command_line import option_value
from cria.model.inventory import Process, Socket, Topology

_RANK = re.compile(r"(?:^|_)(DP|PP|TP)(\d+)")


def read_topology(processes: Sequence[Process], api_listeners: Iterable[Socket]) -> Topology:
    """Return the sizes of the engine's parallel dimensions, its model and its URL.

    They are read from the roles and the command of its processes, root first: vLLM puts a rank into a title only
    where a dimension is larger than one (0.32).
    """
    sizes = _sizes(process.role.name for process in processes)
    kinds = [process.role.name.partition("_")[0] for process in processes]
    listener = next(iter(api_listeners), None)
    return Topology(
        tensor=sizes.get("TP", 1),
        pipeline=sizes.get("PP", 1),
        data=sizes.get("DP", 1),
        api_servers=sum(kind.startswith("API server") for kind in kinds),
        engine_cores=kinds.count("EngineCore"),
        workers=kinds.count("Worker"),
        model=served_model(processes[0].command),
        url=listener.local.http_url if listener else None,
    )


def served_model(command: tuple[str, ...]) -> str | None:
    """Return the name under which the engine serves its model."""
    named = option_value(command, "--served-model-name") or option_value(command, "--model")
    if named or "serve" not in command:
        return named
    after = command[command.index("serve") + 1 :]
    return after[0] if after and not after[0].startswith("-") else None


def _sizes(names: Iterable[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name in names:
        for dimension, rank in _RANK.findall(name):
            sizes[dimension] = max(sizes.get(dimension, 1), int(rank) + 1)
    return sizes
