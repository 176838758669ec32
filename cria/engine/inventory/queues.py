"""Which of vLLM's message queues a ZMQ socket belongs to: told by who listens and who connects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cria.engine.inventory.process_facts import ProcessFacts
from cria.model.inventory import Holder, Role, Socket, UnixSocket

# (who listens, who connects) -> the sockets in the order in which vLLM binds them (0.32:
# v1/engine/core_client.py for the engine's queues, v1/engine/coordinator.py for the coordinator's,
# distributed/device_communicators/shm_broadcast.py for the message queues).
QUEUES: dict[tuple[str, str], tuple[str, ...]] = {
    ("API server", "EngineCore"): ("ZMQ engine input", "ZMQ engine output"),
    ("launcher", "EngineCore"): ("ZMQ start-up handshake",),
    ("EngineCore", "Worker"): ("ZMQ worker broadcast, data", "ZMQ worker broadcast, notify"),
    ("Worker", "EngineCore"): ("ZMQ worker response, data", "ZMQ worker response, notify"),
    ("Worker", "Worker"): ("ZMQ group broadcast, data", "ZMQ group broadcast, notify"),
    ("DPCoordinator", "API server"): ("ZMQ coordinator stats",),
    ("DPCoordinator", "EngineCore"): ("ZMQ coordinator input", "ZMQ coordinator publish"),
}


class SocketEnd(msgspec.Struct, frozen=True, kw_only=True):
    """One socket, whatever its family: `address` is where it is bound, None for a dialled one."""

    inode: int
    listens: bool
    address: str | None
    holders: tuple[Holder, ...]
    peer_holders: tuple[Holder, ...]


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One ZMQ listener, the connections made to it, and the kinds of process at both sides."""

    listener: SocketEnd
    connections: tuple[SocketEnd, ...]
    server: str
    client: str


class Queues(msgspec.Struct, frozen=True, kw_only=True):
    """The role of every ZMQ socket, by inode."""

    roles: dict[int, Role]

    def role(self, inode: int) -> Role | None:
        return self.roles.get(inode)


def find_queues(
    inet: Iterable[Socket], unix: Iterable[UnixSocket], facts: Mapping[int, ProcessFacts]
) -> Queues:
    """Tell the queues apart among the sockets of one engine."""
    ends = [*map(_inet_end, inet), *map(_unix_end, unix)]
    groups: dict[tuple[int, str], list[Channel]] = {}
    for wire in _wires(ends, facts):
        groups.setdefault((wire.listener.holders[-1].pid, wire.client), []).append(wire)
    roles: dict[int, Role] = {}
    for alike in groups.values():
        for place, wire in enumerate(alike):
            role = _role(wire, place, len(alike))
            roles.update((each.inode, role) for each in (wire.listener, *wire.connections))
    return Queues(roles=roles)


def role_kind(role: Role) -> str:
    """Return what a role is called without its rank: EngineCore_DP0 is an EngineCore."""
    if role.name.startswith(("API server", "unknown")):
        return "API server"  # a program that uses vLLM as a library stands where a server would
    return role.name.partition("_")[0]


def _wires(ends: Sequence[SocketEnd], facts: Mapping[int, ProcessFacts]) -> list[Channel]:
    by_holder = {holder: end for end in ends for holder in end.holders}
    accepted: dict[str, list[SocketEnd]] = {}
    for end in ends:
        if not end.listens and end.address is not None:
            accepted.setdefault(end.address, []).append(end)
    found = []
    for end in ends:
        if not end.listens or not _is_zmq(end, facts) or end.address is None:
            continue
        here = accepted.get(end.address, [])
        there = [by_holder[each.peer_holders[0]] for each in here if each.peer_holders]
        found.append(
            Channel(
                listener=end,
                connections=(*here, *there),
                server=_kind_of([end], facts),
                client=_kind_of(there, facts),
            )
        )
    return sorted(found, key=lambda wire: wire.listener.inode)


def _is_zmq(end: SocketEnd, facts: Mapping[int, ProcessFacts]) -> bool:
    return any(h.pid in facts and facts[h.pid].watching(h.fd, "ZMQ") for h in end.holders)


def _kind_of(ends: Iterable[SocketEnd], facts: Mapping[int, ProcessFacts]) -> str:
    pids = [h.pid for end in ends for h in end.holders if h.pid in facts]
    return role_kind(facts[pids[-1]].role) if pids else ""


def _role(wire: Channel, place: int, count: int) -> Role:
    evidence = [f"libzmq's epoll watches it; {wire.server or 'nobody known'} listens"]
    evidence.append(f"{wire.client} has dialled in" if wire.client else "nobody has dialled in")
    names = QUEUES.get((wire.server, wire.client), ())
    # A number that does not fit means that the engine is still starting: say less.
    if not names or count % len(names):
        return Role(name="ZMQ", confidence="certain", evidence=tuple(evidence))
    if len(names) == 1:
        return Role(name=names[0], confidence="certain", evidence=tuple(evidence))
    evidence.append(f"bound as number {place + 1} of {count}")
    return Role(name=names[place % len(names)], confidence="likely", evidence=tuple(evidence))


def _inet_end(socket: Socket) -> SocketEnd:
    return SocketEnd(
        inode=socket.inode,
        listens=socket.state == "LISTEN",
        address=f"{socket.netns} {socket.local}",
        holders=socket.holders,
        peer_holders=socket.peer_holders,
    )


def _unix_end(socket: UnixSocket) -> SocketEnd:
    return SocketEnd(
        inode=socket.inode,
        listens=socket.state == "LISTEN",
        address=socket.path,
        holders=socket.holders,
        peer_holders=socket.peer_holders,
    )
