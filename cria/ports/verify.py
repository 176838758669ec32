"""Refuse a plan whose sockets the kernel would not tell apart, or would refuse to put up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from cria.errors import PortPlanRefused
from cria.inventory import Endpoint, Protocol
from cria.ports.model import Occupant, overlap, plain
from cria.ports.moves import Move

_Ends = tuple[Protocol, str, int, str, int]
_Spot = tuple[int, Protocol, int]


def verify(moves: Iterable[Move], occupants: Iterable[Occupant]) -> None:
    """Raise PortPlanRefused where two sockets that were apart would meet, or meet somebody outside."""
    going = [move for move in moves if not move.closes]
    _check_standing(going)
    _check_connections(going, occupants)
    _check_kept(going)


def _check_standing(moves: Iterable[Move]) -> None:
    # Ports are given out once, so that only a change of address can bring two together.
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
    alive = [o for o in occupants if o.local.port in ports and o.connected and not o.waits]
    if not alive:
        return
    by_ends: dict[_Ends, list[Move]] = defaultdict(list)
    for move in going:
        by_ends[_ends(move.protocol, move.new, move.new_peer)].append(move)
    for there in alive:
        for move in by_ends.get(_ends(there.protocol, there.local, there.peer), ()):
            if there.ns_id in (None, move.ns_id):
                raise PortPlanRefused(
                    f"the connection {move.new} to {move.new_peer} exists already",
                    details=str(there),
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
