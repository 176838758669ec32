"""The layout of an engine: its parallel dimensions, its model and URL, and the process groups of torch.distributed.

The groups are found from outside, by Gloo's loops and the pairs that connect them. Each rank has a loop of its own for
every Gloo group: an epoll that watches the rank's listener for the group and its ends of the pairs, as Gloo calls its
connections. So a pair connects two loops of one group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from cria.engine.command_line import option_value
from cria.engine.inventory.process_facts import ProcessFacts
from cria.model.inventory import Holder, Member, Process, ProcessGroup, Socket, Topology

Loop = tuple[int, int]  # the PID and the descriptor of the epoll
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


def find_groups(
    sockets: Iterable[Socket], facts: Mapping[int, ProcessFacts]
) -> tuple[ProcessGroup, ...]:
    """Return the Gloo groups of an engine, in the order in which the first rank made them."""
    listeners: dict[Loop, Member] = {}
    connected: dict[Loop, set[Loop]] = {}
    for socket in sockets:
        loop = _loop(socket.holders, facts)
        if loop is None:
            continue
        if socket.state == "LISTEN":
            holder = socket.holders[0]
            listeners[loop] = Member(pid=holder.pid, listener=socket.local, fd=holder.fd)
            continue
        peer_loop = _loop(socket.peer_holders, facts)
        if peer_loop is not None:
            connected.setdefault(loop, set()).add(peer_loop)
    return tuple(
        ProcessGroup(number=number, backend="gloo", members=tuple(listeners[m] for m in members))
        for number, members in enumerate(_components(listeners, connected))
    )


def _loop(holders: Iterable[Holder], facts: Mapping[int, ProcessFacts]) -> Loop | None:
    for holder in holders:
        process = facts.get(holder.pid)
        epoll = process.epoll_on(holder.fd, "Gloo") if process else None
        if epoll:
            return holder.pid, epoll.fd
    return None


def _components(
    listeners: Mapping[Loop, Member], connected: Mapping[Loop, set[Loop]]
) -> list[list[Loop]]:
    components: list[list[Loop]] = []
    done: set[Loop] = set()
    for start in sorted(listeners):
        if start in done:
            continue
        members = _reachable(start, connected)
        done |= members
        components.append(sorted(members & listeners.keys()))
    return components


def _reachable(start: Loop, connected: Mapping[Loop, set[Loop]]) -> set[Loop]:
    seen, queue = {start}, [start]
    while queue:
        new = connected.get(queue.pop(), set()) - seen
        seen |= new
        queue.extend(new)
    return seen
