"""Which sockets belong together: listeners, what was accepted on them, and the two ends of a connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import msgspec

from cria.model.socket import UNKNOWN_ROLE, Endpoint, PortSocket, Protocol, overlap, plain

Kind = Literal["listener", "bound", "accepted", "outgoing", "client", "outside"]
GroupKey = tuple[int, Protocol, int]
_Ends = tuple[int, Protocol, str, int, str, int]


class GroupedSocket(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A socket with its place among the others.

    `group` is what moves together: all sockets on one port of one protocol in one namespace. `accepted` and `outgoing` are the two sides of a connection with both ends here; `client` is a
    connection from outside to a published listener, `outside` any other with one end here.
    """

    socket: PortSocket
    kind: Kind
    group: GroupKey
    partner: PortSocket | None = None

    @property
    def one_ended(self) -> bool:
        return self.kind in {"client", "outside"}


def group_sockets(sockets: Iterable[PortSocket]) -> tuple[GroupedSocket, ...]:
    """Each socket that has a port, with its kind, in the order given."""
    bound = [socket for socket in sockets if socket.local.port]
    stands: dict[GroupKey, list[PortSocket]] = defaultdict(list)
    connected: dict[_Ends, PortSocket] = {}
    for socket in bound:
        if socket.peer is None:
            stands[socket.ns_id, socket.protocol, socket.local.port].append(socket)
        else:
            connected[_ends(socket, socket.local, socket.peer)] = socket
    guess = not any(socket.is_api for socket in bound)
    return tuple(_grouped(socket, stands, connected, guess) for socket in bound)


def _grouped(
    socket: PortSocket,
    stands: dict[GroupKey, list[PortSocket]],
    connected: dict[_Ends, PortSocket],
    guess: bool,
) -> GroupedSocket:
    group, peer = (socket.ns_id, socket.protocol, socket.local.port), socket.peer
    if peer is None:
        return GroupedSocket(
            socket=socket, kind="listener" if socket.listens else "bound", group=group
        )
    listener = _standing(group, socket.local.address, stands) if group in stands else None
    partner = connected.get(_ends(socket, peer, socket.local))
    if partner is not None:
        kind: Kind = "accepted" if listener else "outgoing"
        return GroupedSocket(socket=socket, kind=kind, group=group, partner=partner)
    if socket.protocol == "udp":
        # Not a connection: its peer is a filter, and may stand here without one in return.
        partner = _standing((socket.ns_id, "udp", peer.port), peer.address, stands)
        return GroupedSocket(socket=socket, kind="bound", group=group, partner=partner)
    client = listener is not None and _serves_clients(listener, guess)
    return GroupedSocket(socket=socket, kind="client" if client else "outside", group=group)


def _serves_clients(listener: PortSocket, guess: bool) -> bool:
    # Where nobody told the roles, the listeners of the image are all that can be called published.
    return listener.is_api or (guess and listener.role == UNKNOWN_ROLE)


def _standing(
    group: GroupKey, address: str, stands: dict[GroupKey, list[PortSocket]]
) -> PortSocket | None:
    for other in stands.get(group, ()):
        if overlap(other.local.address, other.dual_stack, address, False):
            return other
    return None


def _ends(socket: PortSocket, one: Endpoint, other: Endpoint) -> _Ends:
    near, far = plain(one.address), plain(other.address)
    return socket.ns_id, socket.protocol, near, one.port, far, other.port
