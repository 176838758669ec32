"""Hold the ports of a plan, so that nobody else gets them, until the restored sockets own them.

A reservation is a bound socket that does not listen. Until CRIU starts it shares with nobody; then `open`
lets in what CRIU does, and no more: CRIU binds with SO_REUSEPORT, which the kernel allows beside another
SO_REUSEPORT socket of the same user only. SO_REUSEADDR, which nearly every server sets, stays shut out.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import msgspec

from cria.errors import CriaError, PortPlanRefused, PortTaken
from cria.model.socket import Occupant, Protocol, Target
from cria.network.occupancy import occupants, owners_of, within
from cria.network.plan import PortPlan
from cria.network.planner import verify_plan
from cria.system.locks import HostLock

_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
# Source: linux/tcp.h. Needs CAP_NET_ADMIN.
TCP_REPAIR = 19
_NO_ADDRESS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_LOCK_SECONDS = 30.0
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Reservation:
    """Ports that are held; a context manager that lets them go. The kernel lets go if cria dies."""

    def __init__(
        self,
        targets: tuple[Target, ...],
        held: list[socket.socket],
        stack: ExitStack,
        guards: Iterable[socket.socket] = (),
    ) -> None:
        self.targets = targets
        self._held = held
        self._stack = stack
        self._guards = tuple(guards)

    @property
    def inodes(self) -> frozenset[int]:
        """The inodes of the sockets that hold the ports."""
        every = (*self._held, *self._guards)
        return frozenset(os.fstat(sock.fileno()).st_ino for sock in every)

    def open(self) -> None:
        """Let CRIU bind over the held ports. Call it right before the restore, not earlier."""
        for sock in self._held:
            stream = sock.type == socket.SOCK_STREAM
            # With SO_REUSEPORT a held UDP socket would join the group and take datagrams away.
            option = socket.SO_REUSEPORT if stream else socket.SO_REUSEADDR
            sock.setsockopt(socket.SOL_SOCKET, option, 1)

    def release(self) -> None:
        """Let go of all ports; more than once does no harm."""
        self._stack.close()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def reserve(plans: PortPlan | Iterable[PortPlan], netns: Path | None = None) -> Reservation:
    """Hold every port of `plans` in the network namespace at `netns` (/proc/PID/ns/net) or cria's own.

    All or none is held. Raises PortTaken, naming who stands there, also where it is another cria;
    PortPlanRefused for an address that this host does not have, or a connection that exists by now.
    """
    every = (plans,) if isinstance(plans, PortPlan) else tuple(plans)
    targets = tuple(dict.fromkeys(target for plan in every for target in plan.targets))
    # One after the other: of two that hold some of the same ports each would be in the other's way.
    with HostLock("ports", _LOCK_SECONDS):
        reservation = within(netns, lambda: _hold(targets))
        try:
            _check_alone(every, reservation, netns)
        except BaseException:
            reservation.release()
            raise
    return reservation


def _hold(targets: tuple[Target, ...]) -> Reservation:
    held: list[socket.socket] = []
    refused: list[tuple[Target, OSError]] = []
    claimed: set[tuple[str, int]] = set()
    with ExitStack() as stack:
        for target in targets:
            try:
                if (target.protocol, target.local.port) not in claimed:
                    stack.enter_context(_claim(target))
                    claimed.add((target.protocol, target.local.port))
                held.append(stack.enter_context(_bound(target)))
            except OSError as error:
                refused.append((target, error))
        if refused:
            raise _refusal(refused)
        guards = [stack.enter_context(guard) for guard in _guards(targets)]
        return Reservation(targets, held, stack.pop_all(), guards)


def _guards(targets: tuple[Target, ...]) -> Iterator[socket.socket]:
    """Yield v6-only sockets on [::] for the ports that are reserved for IPv4 alone.

    Without them a stranger binds [::]:P v6-only with SO_REUSEPORT, which does not meet the reservation, and
    then [::]:P for both families, which the kernel compares with the first socket alone (seen on Linux
    6.18): it would listen beside the reservation, and take its IPv4 clients.
    """
    ports = {(target.protocol, target.local.port) for target in targets}
    ports -= {(t.protocol, t.local.port) for t in targets if t.family == "ipv6"}
    for protocol, port in sorted(ports):
        guard = socket.socket(socket.AF_INET6, _KINDS[protocol])
        try:
            guard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            guard.bind(("::", port))
        except OSError:  # no IPv6 here, or a server of IPv6 alone that is in nobody's way
            guard.close()
        else:
            yield guard


def _claim(target: Target) -> socket.socket:
    """A name that only one process of this network namespace can have: it keeps two crias apart."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0cria/port/{target.protocol}/{target.local.port}")
    except OSError:
        claim.close()
        raise
    return claim


def _bound(target: Target) -> socket.socket:
    sock = socket.socket(_FAMILIES[target.family], _KINDS[target.protocol])
    try:
        if target.family == "ipv6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not target.dual_stack)
        if target.protocol == "tcp":
            # Only for the moment of binding: it passes over what an earlier server has accepted and
            # left in TIME_WAIT, as CRIU's own bind does.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(sock, target)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, target: Target) -> None:
    where = (target.local.address, target.local.port)
    try:
        sock.bind(where)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not target.outgoing:
            raise
        # What a client has left in TIME_WAIT stops this bind for a minute, but not CRIU's: it binds
        # connections in repair mode. A socket that really uses the port is found afterwards.
        with suppress(PermissionError):
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            sock.bind(where)
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
            return
        raise


def _check_alone(plans: Iterable[PortPlan], held: Reservation, netns: Path | None) -> None:
    """Ask the kernel once more: from now on nobody can come, so what it says remains true."""
    own = held.inodes
    others = [occupant for occupant in occupants(netns, named=False) if occupant.inode not in own]
    conflicts = standing_on(held.targets, others)
    if conflicts:
        names = owners_of(occupant.inode for _, occupant in conflicts)
        raise taken(
            (target for target, _ in conflicts), (occupant for _, occupant in conflicts), names
        )
    for plan in plans:
        verify_plan(plan.moves, others)


def standing_on(
    targets: Iterable[Target], there: Iterable[Occupant]
) -> list[tuple[Target, Occupant]]:
    """Who of those `there` listens or is bound where one of `targets` is."""
    at: dict[tuple[Protocol, int], list[Occupant]] = {}
    for occupant in there:
        if not occupant.connected:
            at.setdefault((occupant.protocol, occupant.local.port), []).append(occupant)
    return [
        (target, occupant)
        for target in targets
        for occupant in at.get((target.protocol, target.local.port), ())
        if target.meets(occupant.local.address, occupant.dual_stack)
    ]


def taken(
    targets: Iterable[Target], others: Iterable[Occupant], owners: Mapping[int, str] | None = None
) -> PortTaken:
    """The error for `targets` that `others` stand on; `owners` names those by inode."""
    ports = dict.fromkeys(str(target.local.port) for target in targets)
    named = (msgspec.structs.replace(o, owner=(owners or {}).get(o.inode, o.owner)) for o in others)
    return PortTaken(
        f"port {', '.join(ports)} {'is' if len(ports) == 1 else 'are'} taken",
        details="\n".join(map(str, named)) or None,
    )


def _refusal(refused: list[tuple[Target, OSError]]) -> CriaError:
    absent = [str(t.local) for t, e in refused if e.errno in _NO_ADDRESS]
    if absent:
        return PortPlanRefused(
            f"this host has no address for {', '.join(absent)}",
            remedy="move the address to one of this host: --address OLD=NEW",
        )
    other = [error for _, error in refused if error.errno != errno.EADDRINUSE]
    if other:
        raise other[0]
    targets = [target for target, _ in refused]
    conflicts = standing_on(targets, occupants())
    error = taken(targets, (occupant for _, occupant in conflicts))
    if not conflicts:
        error.details = "by another cria that restores now, or by connections: ss -tanp shows them"
    return error


@contextmanager
def reserve_any(count: int) -> Iterator[tuple[int, ...]]:
    """Hold `count` free TCP ports of every local address while the context lasts.

    Nobody gets such a port by asking for port 0. A server that sets SO_REUSEADDR and binds the number
    itself, as vLLM does, binds over the reservation: so it is told the number and can take its time.
    """
    with ExitStack() as held:
        yield tuple(held.enter_context(_held()).getsockname()[1] for _ in range(count))


def _held() -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("", 0))
    # Set after bind: with it the kernel would choose ports that others hold in this way too.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock
