"""Find the process groups of torch.distributed from outside, by Gloo's loops and the pairs that connect them.

Each rank has a loop of its own for every Gloo group: an epoll that watches the rank's listener for the group
and its ends of the pairs, as Gloo calls its connections. So a pair connects two loops of one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cria.engine.inventory.process_facts import ProcessFacts
from cria.model.inventory import Holder, Member, ProcessGroup, Socket

Loop = tuple[int, int]  # the PID and the descriptor of the epoll


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
