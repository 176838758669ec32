"""The process groups of torch.distributed as seen from outside: Gloo's loops and the pairs between them.

Every Gloo group has a loop of its own in each rank: an epoll that watches the rank's listener for the
group and its ends of the pairs. So the pairs join loops, and joined loops are one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cria.engine.inventory.process_facts import ProcessFacts
from cria.model.inventory import Holder, Member, ProcessGroup, Socket

Loop = tuple[int, int]  # PID and the descriptor of the epoll


def find_groups(
    sockets: Iterable[Socket], facts: Mapping[int, ProcessFacts]
) -> tuple[ProcessGroup, ...]:
    """Return the Gloo groups of an engine, in the order in which the first rank made them."""
    listeners: dict[Loop, Member] = {}
    joined: dict[Loop, set[Loop]] = {}
    for each in sockets:
        loop = _loop(each.holders, facts)
        if loop is None:
            continue
        if each.state == "LISTEN":
            holder = each.holders[0]
            listeners[loop] = Member(pid=holder.pid, listener=each.local, fd=holder.fd)
            continue
        other = _loop(each.peer_holders, facts)
        if other is not None:
            joined.setdefault(loop, set()).add(other)
    return tuple(
        ProcessGroup(number=number, backend="gloo", members=tuple(listeners[m] for m in members))
        for number, members in enumerate(_components(listeners, joined))
    )


def _loop(holders: Iterable[Holder], facts: Mapping[int, ProcessFacts]) -> Loop | None:
    for holder in holders:
        known = facts.get(holder.pid)
        epoll = known.watching(holder.fd, "Gloo") if known else None
        if epoll:
            return holder.pid, epoll.fd
    return None


def _components(
    listeners: Mapping[Loop, Member], joined: Mapping[Loop, set[Loop]]
) -> list[list[Loop]]:
    found: list[list[Loop]] = []
    done: set[Loop] = set()
    for start in sorted(listeners):
        if start in done:
            continue
        members = _reachable(start, joined)
        done |= members
        found.append(sorted(members & listeners.keys()))
    return found


def _reachable(start: Loop, joined: Mapping[Loop, set[Loop]]) -> set[Loop]:
    seen, waiting = {start}, [start]
    while waiting:
        new = joined.get(waiting.pop(), set()) - seen
        seen |= new
        waiting.extend(new)
    return seen
