"""Find which of vLLM's message queues each ZMQ socket belongs to, by the processes that listen and connect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cria.engine.inventory.process_facts import ProcessFacts
from cria.model.inventory import Holder, Role, Socket, UnixSocket

# (process that listens, process that connects) -> the sockets in the order in which vLLM binds them (0.32:
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
    """One socket of any family. `address` is where it is bound, None for an outgoing connection."""

    inode: int
    listens: bool
    address: str | None
    holders: tuple[Holder, ...]
    peer_holders: tuple[Holder, ...]


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """A ZMQ listener, the connections to it, and the kinds of process on both sides."""

    listener: SocketEnd
    connections: tuple[SocketEnd, ...]
    server: str
    client: str


class Queues(msgspec.Struct, frozen=True, kw_only=True):
    """The roles of all ZMQ sockets, by inode."""

    roles: dict[int, Role]

    def role(self, inode: int) -> Role | None:
        """Return the role of a socket; None when it is no ZMQ socket."""
        return self.roles.get(inode)


def find_queues(
    inet: Iterable[Socket], unix: Iterable[UnixSocket], facts: Mapping[int, ProcessFacts]
) -> Queues:
    """Tell the queues apart among the sockets of one engine."""
    ends = [*map(_inet_end, inet), *map(_unix_end, unix)]
    # Channels between the same two processes differ only in the order in which they were bound.
    by_processes: dict[tuple[int, str], list[Channel]] = {}
    for channel in _channels(ends, facts):
        key = (channel.listener.holders[-1].pid, channel.client)
        by_processes.setdefault(key, []).append(channel)
    roles: dict[int, Role] = {}
    for channels in by_processes.values():
        for index, channel in enumerate(channels):
            role = _role(channel, index, len(channels))
            for end in (channel.listener, *channel.connections):
                roles[end.inode] = role
    return Queues(roles=roles)


def role_kind(role: Role) -> str:
    """Return the name of a role without its rank: EngineCore_DP0 is an EngineCore."""
    if role.name.startswith(("API server", "unknown")):
        return "API server"  # a program that uses vLLM as a library is where a server would be
    return role.name.partition("_")[0]


def _channels(ends: Sequence[SocketEnd], facts: Mapping[int, ProcessFacts]) -> list[Channel]:
    by_holder = {holder: end for end in ends for holder in end.holders}
    accepted: dict[str, list[SocketEnd]] = {}
    for end in ends:
        if not end.listens and end.address is not None:
            accepted.setdefault(end.address, []).append(end)
    channels = []
    for end in ends:
        if not end.listens or not _is_zmq(end, facts) or end.address is None:
            continue
        server_ends = accepted.get(end.address, [])
        client_ends = [by_holder[e.peer_holders[0]] for e in server_ends if e.peer_holders]
        channels.append(
            Channel(
                listener=end,
                connections=(*server_ends, *client_ends),
                server=_process_kind([end], facts),
                client=_process_kind(client_ends, facts),
            )
        )
    # In the order in which they were bound: inode numbers mostly grow, so roles that rest on it are likely.
    return sorted(channels, key=lambda channel: channel.listener.inode)


def _is_zmq(end: SocketEnd, facts: Mapping[int, ProcessFacts]) -> bool:
    return any(h.pid in facts and facts[h.pid].epoll_on(h.fd, "ZMQ") for h in end.holders)


def _process_kind(ends: Iterable[SocketEnd], facts: Mapping[int, ProcessFacts]) -> str:
    pids = [holder.pid for end in ends for holder in end.holders if holder.pid in facts]
    return role_kind(facts[pids[-1]].role) if pids else ""


def _role(channel: Channel, index: int, count: int) -> Role:
    listens = f"{channel.server or 'an unknown process'} listens"
    connected = f"{channel.client} is connected" if channel.client else "no process is connected"
    evidence: tuple[str, ...] = (f"libzmq's epoll watches it; {listens}", connected)
    names = QUEUES.get((channel.server, channel.client), ())
    # A number of channels that does not fit means that the engine is still starting.
    if not names or count % len(names):
        return Role(name="ZMQ", confidence="certain", evidence=evidence)
    if len(names) == 1:
        return Role(name=names[0], confidence="certain", evidence=evidence)
    evidence = (*evidence, f"bound as number {index + 1} of {count}")
    return Role(name=names[index % len(names)], confidence="likely", evidence=evidence)


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
