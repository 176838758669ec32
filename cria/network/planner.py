"""Plan where every socket of a checkpoint goes: pure, so that it can be tested by the hundred thousand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from cria.errors import PortPlanRefused
from cria.model.socket import (
    Endpoint,
    Occupant,
    Policy,
    PortSocket,
    Protocol,
    in_form_of,
    overlap,
    plain,
)
from cria.network import plan as memory
from cria.network.assignment import Choice, Taken, choose
from cria.network.groups import GroupedSocket, GroupKey, group_sockets
from cria.network.plan import Move, PortPlan
from cria.network.requests import PortRequests

# The other end has ended these already: closing ours tells the program what it would read anyway.
_HUNG_UP = {"CLOSE_WAIT", "LAST_ACK", "CLOSING", "FIN_WAIT1", "FIN_WAIT2"}


def plan(
    sockets: Iterable[PortSocket],
    in_use: Iterable[Occupant] = (),
    requests: PortRequests | None = None,
    *,
    outside: Policy = "refuse",
    clients: Policy = "close",
    clone: int = 0,
) -> PortPlan:
    """Plan the endpoints of `sockets` beside what is `in_use`, as `requests` ask. The same input gives the same plan.

    `clients` is what becomes of connections from outside to an API listener, `outside` of any
    other connection with one end in the checkpoint. `clone` counts from 0 and picks from the ranges in
    `requests`. Raises PortPlanRefused, PortUnknown or PortTaken, naming what and why.
    """
    requests = requests or PortRequests()
    grouped = group_sockets(sockets)
    occupants = tuple(in_use)
    _check_addresses(grouped, requests.addresses)
    policies: dict[str, Policy] = {"client": clients, "outside": outside}
    kept = _check_one_ended(grouped, policies)
    choices = choose(grouped, Taken(occupants), requests, clone=clone)
    moves = tuple(_move(member, choices, requests.addresses, kept) for member in grouped)
    verify_plan(moves, occupants)
    return PortPlan(moves=moves)


def plan_clones(
    sockets: Iterable[PortSocket],
    count: int,
    in_use: Iterable[Occupant] = (),
    requests: PortRequests | None = None,
    *,
    outside: Policy = "refuse",
    clients: Policy = "close",
) -> tuple[PortPlan, ...]:
    """Plan the ports of `count` clones of one checkpoint in one network, so that none excludes another."""
    occupants, images = list(in_use), tuple(sockets)
    plans: list[PortPlan] = []
    for clone in range(count):
        clone_plan = plan(
            images, occupants, requests, outside=outside, clients=clients, clone=clone
        )
        occupants += clone_plan.occupants(f"clone {clone + 1}")
        plans.append(clone_plan)
    return tuple(plans)


def _check_addresses(grouped: Iterable[GroupedSocket], addresses: Mapping[str, str]) -> None:
    if not addresses:
        return
    present = {plain(member.socket.local.address) for member in grouped if not member.one_ended}
    unknown = sorted(set(addresses) - present)
    if unknown:
        raise PortPlanRefused(
            f"address {', '.join(unknown)} is not in the checkpoint",
            details=f"its addresses are: {', '.join(sorted(present)) or 'none'}",
            remedy="list them: cria inspect CHECKPOINT --sockets",
        )


def _check_one_ended(
    grouped: Iterable[GroupedSocket], policies: Mapping[str, Policy]
) -> frozenset[int]:
    """Return the IDs of one-ended connections that are kept. Raises PortPlanRefused by policy."""
    kept, refused = set(), []
    for member in grouped:
        if member.one_ended:
            policy = policies[member.kind]
            if policy == "keep":
                kept.add(member.socket.id)
            elif policy == "refuse" and member.socket.state not in _HUNG_UP:
                refused.append(member)
    if refused:
        raise PortPlanRefused(
            f"{len(refused)} connection(s) lead out of the checkpoint",
            details="\n".join(map(_one_ended, refused)),
            remedy=f"close them in the restored engine: --{_option(refused)} close",
        )
    return frozenset(kept)


def _option(refused: list[GroupedSocket]) -> str:
    return "outside" if any(member.kind == "outside" for member in refused) else "clients"


def _one_ended(member: GroupedSocket) -> str:
    socket = member.socket
    return f"{socket.local} to {socket.peer} ({socket.state}) of {socket.owner or socket.role}"


def _move(
    member: GroupedSocket,
    choices: Mapping[GroupKey, Choice],
    addresses: Mapping[str, str],
    kept: frozenset[int],
) -> Move:
    socket = member.socket
    new, new_peer, closes = socket.local, socket.peer, False
    if not member.one_ended:
        choice = choices[member.group]
        new, why = _new_end(new, choice.new, addresses), _why(member, choice)
        if new_peer is not None and member.partner is not None:
            far = choices[socket.ns_id, socket.protocol, new_peer.port]
            new_peer = _new_end(new_peer, far.new, addresses)
    elif socket.id in kept:
        why = (
            "stays: its other end is outside the checkpoint, and the connection is kept on request"
        )
    else:
        why, closes = f"closed: its other end, {socket.peer}, is outside the checkpoint", True
        new, new_peer = Endpoint(address="::" if ":" in new.address else "0.0.0.0", port=0), None
    return Move(
        id=socket.id,
        inode=socket.inode,
        ns_id=socket.ns_id,
        family=socket.family,
        protocol=socket.protocol,
        state=socket.state,
        kind=member.kind,
        old=socket.local,
        new=new,
        old_peer=socket.peer,
        new_peer=new_peer,
        dual_stack=socket.dual_stack,
        closes=closes,
        role=socket.role,
        owner=socket.owner,
        why=why,
        memory=memory.remembered(socket, new.port) if not closes else "",
    )


def _new_end(end: Endpoint, port: int, addresses: Mapping[str, str]) -> Endpoint:
    address = addresses.get(plain(end.address)) if addresses else None
    if address is None:
        return end if port == end.port else Endpoint(address=end.address, port=port)
    return Endpoint(address=in_form_of(address, end.address), port=port)


def _why(member: GroupedSocket, choice: Choice) -> str:
    if member.kind == "accepted":
        return f"{choice.why}; accepted by the listener on {member.socket.local.port}"
    if member.kind == "outgoing":
        return f"{choice.why}; connected to {member.socket.peer}"
    return choice.why


_Ends = tuple[Protocol, str, int, str, int]
_Spot = tuple[int, Protocol, int]


def verify_plan(moves: Iterable[Move], occupants: Iterable[Occupant]) -> None:
    """Check that no two sockets would exclude each other, or one outside. Raises PortPlanRefused."""
    going = [move for move in moves if not move.closes]
    _check_standing(going)
    _check_connections(going, occupants)
    _check_kept(going)


def _check_standing(moves: Iterable[Move]) -> None:
    # Each port is given out once, so only a change of address can make two sockets exclude each other.
    spots: dict[_Spot, list[Move]] = defaultdict(list)
    for move in moves:
        if move.stands:
            spots[move.ns_id, move.protocol, move.new.port].append(move)
    for together in spots.values():
        if any(move.old.address != move.new.address for move in together):
            for index, one in enumerate(together):
                for other in together[:index]:
                    if _meet(one.new, one, other.new, other) and not _meet(
                        one.old, one, other.old, other
                    ):
                        raise _clash(*sorted((one, other), key=lambda move: move.old == move.new))


def _check_connections(moves: Iterable[Move], occupants: Iterable[Occupant]) -> None:
    going = [move for move in moves if move.new_peer is not None and move.protocol == "tcp"]
    if any(move.old.address != move.new.address for move in going):
        _check_distinct(going)
    ports = {move.new.port for move in going}
    # CRIU restores over a connection that is only remembered.
    alive = [o for o in occupants if o.local.port in ports and o.connected and not o.in_time_wait]
    if not alive:
        return
    by_ends: dict[_Ends, list[Move]] = defaultdict(list)
    for move in going:
        by_ends[_ends(move.protocol, move.new, move.new_peer)].append(move)
    for occupant in alive:
        for move in by_ends.get(_ends(occupant.protocol, occupant.local, occupant.peer), ()):
            if occupant.ns_id in (None, move.ns_id):
                raise PortPlanRefused(
                    f"the connection {move.new} to {move.new_peer} exists already",
                    details=str(occupant),
                    remedy="let it move: --ports auto; or wait until it has ended",
                )


def _check_distinct(moves: Iterable[Move]) -> None:
    seen: dict[tuple[int, _Ends], Move] = {}
    for move in moves:
        ends = _ends(move.protocol, move.new, move.new_peer)
        first = seen.setdefault((move.ns_id, ends), move)
        if first is not move:
            raise _clash(move, first)


def _check_kept(moves: Iterable[Move]) -> None:
    going = list(moves)
    kept = {(m.ns_id, m.protocol, m.new.port): m for m in going if m.one_ended}
    for move in going if kept else ():
        stays = kept.get((move.ns_id, move.protocol, move.new.port))
        if stays and not move.one_ended and move.new.port != move.old.port:
            raise _clash(move, stays)


def _meet(one: Endpoint, first: Move, other: Endpoint, second: Move) -> bool:
    return overlap(one.address, first.dual_stack, other.address, second.dual_stack)


def _clash(move: Move, other: Move) -> PortPlanRefused:
    return PortPlanRefused(
        f"{move.old} cannot become {move.new}",
        details=f"{other.old} of the same checkpoint ({other.role}) would stand there too",
        remedy="give each its own, or let the rest be chosen: --ports auto",
    )


def _ends(protocol: Protocol, local: Endpoint, peer: Endpoint | None) -> _Ends:
    far = peer or Endpoint(address="", port=0)
    return protocol, plain(local.address), local.port, plain(far.address), far.port
