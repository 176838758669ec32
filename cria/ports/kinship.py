"""Which sockets belong together: listeners, what was accepted on them, and the two ends of a connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import msgspec

from cria.inventory import Endpoint, Protocol
from cria.ports.model import UNKNOWN_ROLE, PortSocket, overlap, plain

Kind = Literal["listener", "bound", "accepted", "dialled", "client", "outside"]
GroupKey = tuple[int, Protocol, int]
_Ends = tuple[int, Protocol, str, int, str, int]


class Kin(msgspec.Struct, frozen=True, kw_only=True):
    """A socket with its place among the others.

    `accepted` and `dialled` are the two sides of a connection with both ends here; `client` is a
    connection from outside to a published listener, `outside` any other with one end here.
    """

    socket: PortSocket
    kind: Kind
    partner: PortSocket | None = None
    listener: PortSocket | None = None

    @property
    def one_ended(self) -> bool:
        return self.kind in {"client", "outside"}

    @property
    def group(self) -> GroupKey:
        """What moves together: all sockets on one port of one protocol in one namespace."""
        return self.socket.ns_id, self.socket.protocol, self.socket.local.port


def kinship(sockets: Iterable[PortSocket]) -> tuple[Kin, ...]:
    """Each socket that has a port, with its kind, in the order given."""
    bound = tuple(s for s in sockets if s.local.port)
    stands: dict[GroupKey, list[PortSocket]] = defaultdict(list)
    ends: dict[_Ends, PortSocket] = {}
    for socket in bound:
        if socket.peer is None:
            stands[socket.ns_id, socket.protocol, socket.local.port].append(socket)
        else:
            ends[_ends(socket, socket.local, socket.peer)] = socket
    guess = not any(s.published for s in bound)
    return tuple(_kin(socket, stands, ends, guess) for socket in bound)


def _kin(
    socket: PortSocket,
    stands: dict[GroupKey, list[PortSocket]],
    ends: dict[_Ends, PortSocket],
    guess: bool,
) -> Kin:
    if socket.peer is None:
        return Kin(socket=socket, kind="listener" if socket.listens else "bound")
    listener = _standing(socket, socket.local, stands)
    partner = ends.get(_ends(socket, socket.peer, socket.local))
    if partner is not None:
        kind: Kind = "accepted" if listener else "dialled"
        return Kin(socket=socket, kind=kind, partner=partner, listener=listener)
    if socket.protocol == "udp":
        # Not a connection: its peer is a filter, and may stand here without one in return.
        partner = _standing(socket, socket.peer, stands)
        return Kin(socket=socket, kind="bound", partner=partner, listener=listener)
    client = listener is not None and _serves_clients(listener, guess)
    return Kin(socket=socket, kind="client" if client else "outside", listener=listener)


def _serves_clients(listener: PortSocket, guess: bool) -> bool:
    # Where nobody told the roles, the listeners of the image are all that can be called published.
    return listener.published or (guess and listener.role == UNKNOWN_ROLE)


def _standing(
    socket: PortSocket, at: Endpoint, stands: dict[GroupKey, list[PortSocket]]
) -> PortSocket | None:
    for other in stands.get((socket.ns_id, socket.protocol, at.port), ()):
        if overlap(other.local.address, other.dual_stack, at.address, False):
            return other
    return None


def _ends(socket: PortSocket, one: Endpoint, other: Endpoint) -> _Ends:
    near, far = plain(one.address), plain(other.address)
    return socket.ns_id, socket.protocol, near, one.port, far, other.port
