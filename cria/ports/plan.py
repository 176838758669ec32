"""Plan where every socket of a checkpoint goes: pure, so that it can be tested by the hundred thousand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from cria.errors import PortPlanRefused
from cria.inventory import Endpoint
from cria.ports import memory
from cria.ports.choose import Choice, Taken, choose
from cria.ports.kinship import GroupKey, Kin, kinship
from cria.ports.model import Occupant, PortSocket, in_form_of, plain
from cria.ports.moves import Move, PortPlan
from cria.ports.verify import verify
from cria.ports.wishes import Wishes

Policy = Literal["refuse", "close", "keep"]

# The other end has ended these already: closing ours tells the program what it would read anyway.
_HUNG_UP = {"CLOSE_WAIT", "LAST_ACK", "CLOSING", "FIN_WAIT1", "FIN_WAIT2"}


def plan(
    sockets: Iterable[PortSocket],
    in_use: Iterable[Occupant] = (),
    wishes: Wishes | None = None,
    *,
    outside: Policy = "refuse",
    clients: Policy = "close",
    clone: int = 0,
) -> PortPlan:
    """Plan the endpoints of `sockets` beside what is `in_use`, as wished; the same input, the same plan.

    `clients` is what becomes of connections from outside to a published listener, `outside` of any
    other connection with one end in the checkpoint. `clone` counts from 0 and picks from the ranges in
    `wishes`. Raises PortPlanRefused, PortUnknown or PortTaken, naming what and why.
    """
    wishes = wishes or Wishes()
    kin = kinship(sockets)
    occupants = tuple(in_use)
    _check_addresses(kin, wishes.addresses)
    policies: dict[str, Policy] = {"client": clients, "outside": outside}
    kept = _check_one_ended(kin, policies)
    choices = choose(kin, Taken(occupants), wishes, clone=clone)
    moves = tuple(_move(each, choices, wishes.addresses, kept) for each in kin)
    verify(moves, occupants)
    return PortPlan(moves=moves)


def plan_clones(
    sockets: Iterable[PortSocket],
    count: int,
    in_use: Iterable[Occupant] = (),
    wishes: Wishes | None = None,
    *,
    outside: Policy = "refuse",
    clients: Policy = "close",
) -> tuple[PortPlan, ...]:
    """Plans for `count` clones of one checkpoint in one network, none in the way of another."""
    occupants, images = list(in_use), tuple(sockets)
    plans: list[PortPlan] = []
    for clone in range(count):
        made = plan(images, occupants, wishes, outside=outside, clients=clients, clone=clone)
        occupants += made.occupants(f"clone {clone + 1}")
        plans.append(made)
    return tuple(plans)


def _check_addresses(kin: Iterable[Kin], addresses: Mapping[str, str]) -> None:
    if not addresses:
        return
    present = {plain(each.socket.local.address) for each in kin if not each.one_ended}
    unknown = sorted(set(addresses) - present)
    if unknown:
        raise PortPlanRefused(
            f"address {', '.join(unknown)} is not in the checkpoint",
            details=f"its addresses are: {', '.join(sorted(present)) or 'none'}",
            remedy="list them: cria inspect CHECKPOINT --sockets",
        )


def _check_one_ended(kin: Iterable[Kin], policies: Mapping[str, Policy]) -> frozenset[int]:
    """The IDs of one-ended connections that are kept; refuse where the policy says so."""
    kept, refused = set(), []
    for each in kin:
        if each.one_ended:
            policy = policies[each.kind]
            if policy == "keep":
                kept.add(each.socket.id)
            elif policy == "refuse" and each.socket.state not in _HUNG_UP:
                refused.append(each)
    if refused:
        raise PortPlanRefused(
            f"{len(refused)} connection(s) lead out of the checkpoint",
            details="\n".join(map(_one_ended, refused)),
            remedy=f"close them in the restored engine: --{_option(refused)} close",
        )
    return frozenset(kept)


def _option(refused: list[Kin]) -> str:
    return "outside" if any(each.kind == "outside" for each in refused) else "clients"


def _one_ended(each: Kin) -> str:
    socket = each.socket
    return f"{socket.local} to {socket.peer} ({socket.state}) of {socket.owner or socket.role}"


def _move(
    each: Kin,
    choices: Mapping[GroupKey, Choice],
    addresses: Mapping[str, str],
    kept: frozenset[int],
) -> Move:
    socket = each.socket
    new, new_peer, closes = socket.local, socket.peer, False
    if not each.one_ended:
        choice = choices[each.group]
        new, why = _new_end(new, choice.new, addresses), _why(each, choice)
        if new_peer is not None and each.partner is not None:
            far = choices[socket.ns_id, socket.protocol, new_peer.port]
            new_peer = _new_end(new_peer, far.new, addresses)
    elif socket.id in kept:
        why = "stays: its other end is outside the checkpoint and it is asked to go on"
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
        kind=each.kind,
        old=socket.local,
        new=new,
        old_peer=socket.peer,
        new_peer=new_peer,
        dual_stack=socket.dual_stack,
        closes=closes,
        role=socket.role,
        owner=socket.owner,
        why=why,
        memory=memory.of(socket, new.port) if not closes else "",
    )


def _new_end(end: Endpoint, port: int, addresses: Mapping[str, str]) -> Endpoint:
    address = addresses.get(plain(end.address)) if addresses else None
    if address is None:
        return end if port == end.port else Endpoint(address=end.address, port=port)
    return Endpoint(address=in_form_of(address, end.address), port=port)


def _why(each: Kin, choice: Choice) -> str:
    if each.kind == "accepted":
        return f"{choice.why}; accepted by the listener on {each.socket.local.port}"
    if each.kind == "dialled":
        return f"{choice.why}; connected to {each.socket.peer}"
    return choice.why
