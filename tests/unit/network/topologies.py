"""Random topologies of sockets, as a kernel would allow them, and what must hold of every plan for them."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from cria.model.socket import Endpoint, Occupant, PortSocket, Protocol
from cria.network.plan import Move, PortPlan
from cria.network.requests import Mode, PortRequests

# Few ports, so that wishes, occupants and sockets meet all the time.
PORTS = range(8000, 8024)
ROLES = ("HTTP API", "Gloo", "ZMQ", "TCPStore", "unknown")
MODES: tuple[Mode, ...] = ("as-needed", "keep", "auto", "fresh", "offset")
V4, V6 = ("127.0.0.1", "10.0.0.5"), ("::1", "fd00::5")


class Topology:
    """Sockets under construction; `listen` and the others refuse what a kernel would refuse."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.sockets: list[PortSocket] = []
        self._standing: list[tuple[int, Protocol, int, str, bool]] = []
        self._used: set[tuple[int, Protocol, int]] = set()

    def add(
        self, ns: int, protocol: Protocol, state: str, local: Endpoint, peer: Endpoint | None = None,
        *, dual: bool = False, reuse: bool = False, role: str = "unknown",
    ) -> PortSocket:  # fmt: skip
        number = len(self.sockets) + 1
        socket = PortSocket(
            id=number,
            inode=number + 1000,
            ns_id=ns,
            family="ipv6" if ":" in local.address else "ipv4",
            protocol=protocol,
            state=state,
            local=local,
            peer=peer,
            dual_stack=dual,
            reuse_port=reuse,
            role=role,
        )
        self.sockets.append(socket)
        self._used.add((ns, protocol, local.port))
        return socket

    def stand(self, ns: int, protocol: Protocol, role: str) -> None:
        random = self.random
        port = random.choice(PORTS)
        address = random.choice(("0.0.0.0", "::", *V4, *V6))
        dual = address == "::" and random.random() < 0.5
        count = random.choice((1, 1, 1, 2, 3))
        spot = (ns, protocol, port, address, dual)
        if any(alike(spot, there) for there in self._standing):
            return
        self._standing.append(spot)
        state = "LISTEN" if protocol == "tcp" else "CLOSE"
        for _ in range(count):
            end = Endpoint(address=address, port=port)
            self.add(ns, protocol, state, end, dual=dual, reuse=count > 1, role=role)

    def connect(self, listener: PortSocket, inside: bool) -> None:
        """A connection to `listener`, with its other end in the image or not."""
        ns, random = listener.ns_id, self.random
        near, far = self._forms(listener)
        port = self._ephemeral(ns)
        if port is None:
            return
        accepted = Endpoint(address=near, port=listener.local.port)
        self.add(ns, "tcp", "ESTABLISHED", accepted, Endpoint(address=near, port=port),
                 role=listener.role)  # fmt: skip
        if inside:
            state = random.choice(("ESTABLISHED", "ESTABLISHED", "CLOSE_WAIT"))
            peer = Endpoint(address=far, port=listener.local.port)
            self.add(ns, "tcp", state, Endpoint(address=far, port=port), peer)

    def orphan_pair(self, ns: int) -> None:
        """Two connected ends whose listener has gone."""
        one, other = self._ephemeral(ns), self._ephemeral(ns)
        if one and other:
            ends = Endpoint(address=V4[0], port=one), Endpoint(address=V4[0], port=other)
            self.add(ns, "tcp", "ESTABLISHED", *ends)
            self.add(ns, "tcp", "ESTABLISHED", *reversed(ends))

    def outward(self, ns: int) -> None:
        port = self._ephemeral(ns)
        if port:
            local = Endpoint(address="10.0.0.5", port=port)
            self.add(ns, "tcp", "ESTABLISHED", local, Endpoint(address="192.0.2.1", port=443))

    def _forms(self, listener: PortSocket) -> tuple[str, str]:
        address = listener.local.address
        if address == "0.0.0.0":
            address = V4[0]
        if address == "::":
            if listener.dual_stack and self.random.random() < 0.6:
                return f"::ffff:{V4[0]}", V4[0]
            address = V6[0]
        return address, address

    def _ephemeral(self, ns: int) -> int | None:
        for _ in range(4):
            port = self.random.choice(PORTS)
            if (ns, "tcp", port) not in self._used:
                self._used.add((ns, "tcp", port))
                return port
        return None


def topology(random: Random) -> list[PortSocket]:
    made = Topology(random)
    for _ in range(random.randint(1, 4)):
        protocol: Protocol = "udp" if random.random() < 0.15 else "tcp"
        made.stand(random.choice((1, 1, 1, 2)), protocol, random.choice(ROLES))
    for listener in [each for each in made.sockets if each.listens]:
        if random.random() < 0.5:
            made.connect(listener, inside=random.random() < 0.8)
    if random.random() < 0.2:
        made.orphan_pair(1)
    if random.random() < 0.1:
        made.outward(1)
    return made.sockets


def in_use(random: Random, sockets: Iterable[PortSocket]) -> list[Occupant]:
    """Strangers, and now and then the original itself, still alive."""
    found = [
        Occupant(protocol="tcp", state="LISTEN", local=Endpoint(
            address=random.choice(("0.0.0.0", *V4)), port=random.choice(PORTS)), owner="a stranger")
        for _ in range(random.choice((0, 0, 1, 3)))
    ]  # fmt: skip
    if random.random() < 0.1:
        local = Endpoint(address=V4[0], port=random.choice(PORTS))
        far = Endpoint(address=V4[0], port=random.choice(PORTS))
        found.append(Occupant(protocol="tcp", state="TIME_WAIT", local=local, peer=far))
    if random.random() < 0.3:
        found += (
            Occupant(protocol=s.protocol, state=s.state, local=s.local, peer=s.peer,
                     dual_stack=s.dual_stack, ns_id=s.ns_id, owner="the original")
            for s in sockets
        )  # fmt: skip
    return found


def wishes(random: Random, sockets: list[PortSocket]) -> PortRequests:
    ports = {}
    if sockets and random.random() < 0.4:
        for _ in range(random.choice((1, 1, 2))):
            ports[random.choice(sockets).local.port] = (random.choice(PORTS),)
    return PortRequests(
        ports=ports,
        mode=random.choice(MODES),
        offset=random.choice((1, 100, -3)),
        addresses={"10.0.0.5": "127.0.0.1"} if _moves_address(random, sockets) else {},
    )


def _moves_address(random: Random, sockets: list[PortSocket]) -> bool:
    held = any(s.local.address == "10.0.0.5" and s.peer is None for s in sockets)
    return held and random.random() < 0.2


# What must hold ---------------------------------------------------------------------------------


def bare(address: str) -> str:
    return address[7:] if address.startswith("::ffff:") else address


def alike(
    one: tuple[int, Protocol, int, str, bool], other: tuple[int, Protocol, int, str, bool]
) -> bool:
    """Whether two bound sockets (namespace, protocol, port, address, dual) want the same packets."""
    return one[:3] == other[:3] and bool(reach(one[3], one[4]) & reach(other[3], other[4]))


def reach(address: str, dual: bool) -> frozenset[str]:
    """The addresses of a small world that a socket bound to `address` answers."""
    v4 = frozenset({*V4, "a v4 address"})
    v6 = frozenset({*V6, "a v6 address"})
    if address == "0.0.0.0":
        return v4
    if address == "::":
        return v4 | v6 if dual else v6
    return frozenset({bare(address)})


def spot(move: Move, *, new: bool) -> tuple[int, Protocol, int, str, bool]:
    end = move.new if new else move.old
    return move.ns_id, move.protocol, end.port, end.address, move.dual_stack


def four(local: Endpoint, peer: Endpoint) -> tuple[str, int, str, int]:
    return bare(local.address), local.port, bare(peer.address), peer.port


def check(
    sockets: list[PortSocket], there: list[Occupant], asked: PortRequests, plan: PortPlan
) -> None:
    """Assert everything that must hold of any plan."""
    moves = {move.id: move for move in plan}
    assert len(moves) == len(plan.moves) == len(sockets)
    standing = [move for move in plan if move.stands]
    check_apart(standing)
    check_strangers(standing, there)
    check_connections(plan, there)
    check_pairs(sockets, moves)
    for move in plan:
        check_one(move, asked)


def check_apart(standing: list[Move]) -> None:
    for index, one in enumerate(standing):
        for other in standing[:index]:
            if alike(spot(one, new=True), spot(other, new=True)):
                assert alike(spot(one, new=False), spot(other, new=False)), (one, other)


def check_strangers(standing: list[Move], there: list[Occupant]) -> None:
    for stranger in there:
        if stranger.peer is None:
            for move in standing:
                where = (stranger.ns_id or move.ns_id, stranger.protocol, stranger.local.port,
                         stranger.local.address, stranger.dual_stack)  # fmt: skip
                assert not alike(spot(move, new=True), where), (move, stranger)


def check_connections(plan: PortPlan, there: list[Occupant]) -> None:
    # CRIU restores over a connection in TIME_WAIT.
    alive = [each for each in there if each.peer and each.state != "TIME_WAIT"]
    live = {(each.ns_id, four(each.local, each.peer)) for each in alive}
    seen = set()
    for move in plan:
        if move.new_peer is not None and move.protocol == "tcp":
            ends = four(move.new, move.new_peer)
            assert (move.ns_id, ends) not in seen, move
            assert (None, ends) not in live and (move.ns_id, ends) not in live, move
            seen.add((move.ns_id, ends))


def check_pairs(sockets: list[PortSocket], moves: dict[int, Move]) -> None:
    by_ends = {
        (s.ns_id, four(s.local, s.peer)): s for s in sockets if s.peer and s.protocol == "tcp"
    }
    for (ns, ends), socket in by_ends.items():
        move = moves[socket.id]
        partner = by_ends.get((ns, ends[2:] + ends[:2]))
        if partner is None:
            assert move.closes or not move.changes, "a connection to outside must not move"
            continue
        far = moves[partner.id]
        assert not move.closes and move.new_peer is not None and far.new_peer is not None
        assert four(move.new, move.new_peer) == four(far.new_peer, far.new), "a pair was torn"
        assert ("." in move.new.address) == ("." in move.old.address), "a form of address changed"
        for listener in sockets:
            if (
                listener.listens
                and listener.ns_id == ns
                and listener.local.port == socket.local.port
            ):
                assert moves[listener.id].new.port == move.new.port, "an accepted socket was left"


def check_one(move: Move, asked: PortRequests) -> None:
    if move.closes:
        return
    assert 0 < move.new.port < 65536
    assert move.new.port >= 1024 or move.new.port == move.old.port
    wanted = asked.ports.get(move.old.port)
    if wanted and not move.one_ended:
        assert move.new.port == wanted[0], "a wish was not granted"
    elif asked.mode == "keep" or move.one_ended:
        assert move.new.port == move.old.port, "what nobody asked for has moved"
    elif asked.mode == "offset":
        assert move.new.port == move.old.port + asked.offset
    elif asked.mode == "fresh":
        assert move.new.port != move.old.port
    if not asked.addresses:
        assert move.new.address == move.old.address
    assert move.why
