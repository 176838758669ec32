"""Choose the new port of every group of sockets that must stay on one port."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cria.errors import PortPlanRefused, PortTaken, PortUnknown
from cria.model.socket import API_ROLE, UNKNOWN_ROLE, Occupant, Protocol, overlap, plain
from cria.network.groups import GroupedSocket, GroupKey
from cria.network.requests import HIGHEST, LOWEST_UNPRIVILEGED, PortRequests, check_range


class Choice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The new port of a group, and why."""

    new: int
    why: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A port that is not to be had, and what uses it."""

    old: int
    new: int
    what: str

    def __str__(self) -> str:
        return f"port {self.new}" + (f" (for {self.old})" if self.old != self.new else "")


class Taken:
    """The occupants of ports in the target namespaces, by protocol and port."""

    def __init__(self, in_use: Iterable[Occupant]) -> None:
        self._at: dict[tuple[Protocol, int], list[Occupant]] = defaultdict(list)
        for occupant in in_use:
            self._at[occupant.protocol, occupant.local.port].append(occupant)

    def ports(self, protocol: Protocol) -> set[int]:
        return {port for kind, port in self._at if kind == protocol}

    def by(
        self,
        group: Sequence[GroupedSocket],
        new: int,
        addresses: Mapping[str, str],
        *,
        strictly: bool,
    ) -> Occupant | None:
        """Return an occupant that would exclude `group` from port `new`; None if there is none.

        Unless `strictly`, a connection does not exclude a listener: the kernel decides when the port is
        reserved, and what an earlier server accepted does not stop the next one.
        """
        at = self._at.get((group[0].socket.protocol, new), ())
        for member in group if at else ():
            socket = member.socket
            address = addresses.get(plain(socket.local.address), socket.local.address)
            for occupant in at:
                if occupant.ns_id not in (None, socket.ns_id):
                    continue
                lenient = not strictly and occupant.connected and socket.protocol == "tcp"
                if lenient and (
                    member.kind not in {"accepted", "outgoing"} or occupant.in_time_wait
                ):
                    continue
                if overlap(address, socket.dual_stack, occupant.local.address, occupant.dual_stack):
                    return occupant
        return None


class Free:
    """The free ports of one namespace and protocol; each is given out once, upwards from a number."""

    def __init__(self, taken: Iterable[int]) -> None:
        # For each port that is gone, the next one to try; paths are shortened as in union-find.
        self._next = {port: port + 1 for port in taken}

    def after(self, port: int) -> int | None:
        """Return the first free port above `port`, else the first above the privileged ports; None if none is."""
        for begin in (max(port + 1, LOWEST_UNPRIVILEGED), LOWEST_UNPRIVILEGED):
            candidate = self._follow(begin)
            if candidate <= HIGHEST:
                self._next[candidate] = candidate + 1
                return candidate
        return None

    def _follow(self, port: int) -> int:
        way = []
        while port in self._next:
            way.append(port)
            port = self._next[port]
        for passed in way:
            self._next[passed] = port
        return port


def choose(
    sockets: Iterable[GroupedSocket], taken: Taken, requests: PortRequests, *, clone: int = 0
) -> dict[GroupKey, Choice]:
    """Return the new port of each group. Raises PortUnknown, PortTaken or PortPlanRefused."""
    groups: dict[GroupKey, list[GroupedSocket]] = defaultdict(list)
    reserved: dict[tuple[int, Protocol], set[int]] = defaultdict(set)
    for socket in sockets:
        if socket.one_ended:
            reserved[socket.group[:2]].add(socket.group[2])
        else:
            groups[socket.group].append(socket)
    for key in groups:
        reserved[key[:2]].add(key[2])
    requested = requests.for_clone(clone)
    _check_known(requested, groups)
    chosen, unassigned = _settle(groups, taken, requests, requested)
    for key, choice in chosen.items():
        reserved[key[:2]].add(choice.new)
    for where, ports in reserved.items():
        free = Free(ports | taken.ports(where[1]))
        for key in sorted(key for key in unassigned if key[:2] == where):
            chosen[key] = _assign(key, free, unassigned[key])
    _check_distinct(chosen)
    return chosen


def _settle(
    groups: Mapping[GroupKey, list[GroupedSocket]],
    taken: Taken,
    requests: PortRequests,
    requested: Mapping[int, int],
) -> tuple[dict[GroupKey, Choice], dict[GroupKey, str]]:
    """Return the groups whose port is decided, and for each other group why it needs a new port."""
    chosen: dict[GroupKey, Choice] = {}
    unassigned: dict[GroupKey, str] = {}
    problems: list[Problem] = []
    targets = set(requested.values()) - set(requested)
    for key, group in groups.items():
        port = key[2]
        pinned = _pinned(group)
        choice = _asked_for(port, requested, requests, pinned)
        movable = not pinned and _movable(group, port, requested, requests)
        if movable and requests.mode == "fresh":
            unassigned[key] = "asked: fresh"
            continue
        occupant = taken.by(group, choice.new, requests.addresses, strictly=movable)
        if occupant is None and not (movable and port in targets):
            chosen[key] = choice
        elif occupant is None:
            unassigned[key] = f"moved: {port} is where another port was asked to go"
        elif movable:
            unassigned[key] = f"moved: {port} is taken by {occupant.owner or occupant}"
        else:
            problems.append(Problem(old=port, new=choice.new, what=f"{occupant}{_out(pinned)}"))
    if problems:
        raise PortTaken(
            f"{', '.join(map(str, problems[:5]))} {'is' if len(problems) == 1 else 'are'} taken",
            details="\n".join(f"port {p.new}: {p.what}" for p in problems),
        )
    return chosen, unassigned


def _pinned(group: Iterable[GroupedSocket]) -> str:
    for member in group:
        if member.socket.pinned:
            return member.socket.pinned
    return ""


def _asked_for(
    port: int, requested: Mapping[int, int], requests: PortRequests, pinned: str
) -> Choice:
    if port in requested:
        if pinned and requested[port] != port:
            raise PortPlanRefused(
                f"port {port} cannot move",
                details=pinned,
                remedy=f"leave {port} out of the moves, or restore in a network of its own: --isolate net",
            )
        check_range(port, requested[port])
        return Choice(new=requested[port], why=f"asked: {port}={requested[port]}")
    if pinned:
        return Choice(new=port, why=f"stays: {pinned}")
    if requests.mode == "offset":
        check_range(port, port + requests.offset)
        return Choice(new=port + requests.offset, why=f"asked: offset {requests.offset:+d}")
    return Choice(new=port, why="stays: asked" if requests.mode == "keep" else "stays: free")


def _movable(
    group: list[GroupedSocket], port: int, requested: Mapping[int, int], requests: PortRequests
) -> bool:
    """Say whether the planner may choose the port of `group`."""
    if port in requested or requests.mode in {"keep", "offset"}:
        return False
    if requests.mode in {"auto", "fresh"}:
        return True
    # as-needed: clients outside may use the port of a listener whose role is unknown.
    stands = (member.socket.role for member in group if member.socket.peer is None)
    return all(role not in {API_ROLE, UNKNOWN_ROLE} for role in stands)


def _assign(key: GroupKey, free: Free, why: str) -> Choice:
    new = free.after(key[2])
    if new is None:
        raise PortTaken(f"no {key[1]} port is free for {key[2]}", details=f"{key[2]}: {why}")
    return Choice(new=new, why=why)


def _check_known(
    requested: Mapping[int, int], groups: Mapping[GroupKey, list[GroupedSocket]]
) -> None:
    unknown = sorted(set(requested) - {port for _, _, port in groups})
    if not unknown:
        return
    stands = {
        (port, protocol, group[0].socket.role)
        for (_, protocol, port), group in groups.items()
        if any(member.socket.peer is None for member in group)
    }
    listing = "\n".join(f"{port} ({protocol}, {role})" for port, protocol, role in sorted(stands))
    raise PortUnknown(
        f"port {', '.join(map(str, unknown))} is not in the checkpoint",
        details=f"its ports are:\n{listing}" if listing else "it has no port at all",
        remedy="list them: cria inspect CHECKPOINT --sockets",
    )


def _check_distinct(chosen: Mapping[GroupKey, Choice]) -> None:
    owners: dict[GroupKey, int] = {}
    for (ns_id, protocol, old), choice in chosen.items():
        first = owners.setdefault((ns_id, protocol, choice.new), old)
        if first != old:
            one, other = sorted((first, old))
            raise PortPlanRefused(
                f"{protocol} ports {one} and {other} cannot both become {choice.new}",
                details="two sockets of the checkpoint would have one port",
                remedy="give each its own, or let the rest be chosen: --ports auto",
            )


def _out(pinned: str) -> str:
    return f"; it cannot move: {pinned}" if pinned else ""
