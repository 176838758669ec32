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
    """Where a group goes and why."""

    new: int
    why: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A port that cannot be had: what is there."""

    old: int
    new: int
    what: str

    def __str__(self) -> str:
        return f"port {self.new}" + (f" (for {self.old})" if self.old != self.new else "")


class Taken:
    """Who stands where in the target namespaces, by protocol and port."""

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
        """Who would be in the way of `group` on port `new`, if anybody.

        Not `strictly`, a connection in the way of a listener is left to the kernel's word when the
        port is reserved: what an earlier server accepted does not hinder the next one.
        """
        at = self._at.get((group[0].socket.protocol, new), ())
        for kin in group if at else ():
            socket = kin.socket
            address = addresses.get(plain(socket.local.address), socket.local.address)
            for there in at:
                if there.ns_id not in (None, socket.ns_id):
                    continue
                lenient = not strictly and there.connected and socket.protocol == "tcp"
                if lenient and (kin.kind not in {"accepted", "outgoing"} or there.in_time_wait):
                    continue
                if overlap(address, socket.dual_stack, there.local.address, there.dual_stack):
                    return there
        return None


class Free:
    """The free ports of one namespace and protocol, each given out once, upwards from a number."""

    def __init__(self, taken: Iterable[int]) -> None:
        # The next port to try for each one that is gone; followed and shortened like union-find.
        self._next = {port: port + 1 for port in taken}

    def after(self, port: int) -> int | None:
        """The first free port above `port`, or else the first above the privileged ones."""
        for begin in (max(port + 1, LOWEST_UNPRIVILEGED), LOWEST_UNPRIVILEGED):
            found = self._follow(begin)
            if found <= HIGHEST:
                self._next[found] = found + 1
                return found
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
    kin: Iterable[GroupedSocket], taken: Taken, wishes: PortRequests, *, clone: int = 0
) -> dict[GroupKey, Choice]:
    """The new port of each group; raises PortUnknown, PortTaken or PortPlanRefused."""
    groups: dict[GroupKey, list[GroupedSocket]] = defaultdict(list)
    reserved: dict[tuple[int, Protocol], set[int]] = defaultdict(set)
    for each in kin:
        if each.one_ended:
            reserved[each.group[:2]].add(each.group[2])
        else:
            groups[each.group].append(each)
    for key in groups:
        reserved[key[:2]].add(key[2])
    asked = wishes.for_clone(clone)
    _check_known(asked, groups)
    chosen, homeless = _settle(groups, taken, wishes, asked)
    for key, choice in chosen.items():
        reserved[key[:2]].add(choice.new)
    for where, ports in reserved.items():
        free = Free(ports | taken.ports(where[1]))
        for key in sorted(key for key in homeless if key[:2] == where):
            chosen[key] = _house(key, free, homeless[key])
    _check_distinct(chosen)
    return chosen


def _settle(
    groups: Mapping[GroupKey, list[GroupedSocket]],
    taken: Taken,
    wishes: PortRequests,
    asked: Mapping[int, int],
) -> tuple[dict[GroupKey, Choice], dict[GroupKey, str]]:
    """The groups whose port is decided, and why each of the others needs a new one."""
    chosen: dict[GroupKey, Choice] = {}
    homeless: dict[GroupKey, str] = {}
    problems: list[Problem] = []
    targets = set(asked.values()) - set(asked)
    for key, group in groups.items():
        port = key[2]
        pinned = _pinned(group)
        choice = _asked_for(port, asked, wishes, pinned)
        movable = not pinned and _movable(group, port, asked, wishes)
        if movable and wishes.mode == "fresh":
            homeless[key] = "asked: fresh"
            continue
        occupant = taken.by(group, choice.new, wishes.addresses, strictly=movable)
        if occupant is None and not (movable and port in targets):
            chosen[key] = choice
        elif occupant is None:
            homeless[key] = f"moved: {port} is where another port was asked to go"
        elif movable:
            homeless[key] = f"moved: {port} is taken by {occupant.owner or occupant}"
        else:
            problems.append(Problem(old=port, new=choice.new, what=f"{occupant}{_out(pinned)}"))
    if problems:
        raise PortTaken(
            f"{', '.join(map(str, problems[:5]))} {'is' if len(problems) == 1 else 'are'} taken",
            details="\n".join(f"port {p.new}: {p.what}" for p in problems),
        )
    return chosen, homeless


def _pinned(group: Iterable[GroupedSocket]) -> str:
    for each in group:
        if each.socket.pinned:
            return each.socket.pinned
    return ""


def _asked_for(port: int, asked: Mapping[int, int], wishes: PortRequests, pinned: str) -> Choice:
    if port in asked:
        if pinned and asked[port] != port:
            raise PortPlanRefused(
                f"port {port} cannot move",
                details=pinned,
                remedy=f"leave {port} out of the moves, or restore in a network of its own: --isolate net",
            )
        check_range(port, asked[port])
        return Choice(new=asked[port], why=f"asked: {port}={asked[port]}")
    if pinned:
        return Choice(new=port, why=f"stays: {pinned}")
    if wishes.mode == "offset":
        check_range(port, port + wishes.offset)
        return Choice(new=port + wishes.offset, why=f"asked: offset {wishes.offset:+d}")
    return Choice(new=port, why="stays: asked" if wishes.mode == "keep" else "stays: free")


def _movable(
    group: list[GroupedSocket], port: int, asked: Mapping[int, int], wishes: PortRequests
) -> bool:
    """Whether the planner may choose the port of `group` itself."""
    if port in asked or wishes.mode in {"keep", "offset"}:
        return False
    if wishes.mode in {"auto", "fresh"}:
        return True
    # as-needed: somebody outside may know the port of a listener whose use nobody knows.
    stands = (each.socket.role for each in group if each.socket.peer is None)
    return all(role not in {API_ROLE, UNKNOWN_ROLE} for role in stands)


def _house(key: GroupKey, free: Free, why: str) -> Choice:
    new = free.after(key[2])
    if new is None:
        raise PortTaken(f"no {key[1]} port is free for {key[2]}", details=f"{key[2]}: {why}")
    return Choice(new=new, why=why)


def _check_known(asked: Mapping[int, int], groups: Mapping[GroupKey, list[GroupedSocket]]) -> None:
    unknown = sorted(set(asked) - {port for _, _, port in groups})
    if not unknown:
        return
    stands = {
        (port, protocol, group[0].socket.role)
        for (_, protocol, port), group in groups.items()
        if any(each.socket.peer is None for each in group)
    }
    known = "\n".join(f"{port} ({protocol}, {role})" for port, protocol, role in sorted(stands))
    raise PortUnknown(
        f"port {', '.join(map(str, unknown))} is not in the checkpoint",
        details=f"its ports are:\n{known}" if known else "it has no port at all",
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
                details="two sockets of the checkpoint would stand on one port",
                remedy="give each its own, or let the rest be chosen: --ports auto",
            )


def _out(pinned: str) -> str:
    return f"; it cannot move: {pinned}" if pinned else ""
