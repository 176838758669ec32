"""After a restore: every listener stands, alone and as ours, and nobody can slip in beside it."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cria.errors import RestoreFailed
from cria.model.socket import Endpoint, Target, plain
from cria.network.occupancy import inodes_of, occupants, owners_of, within
from cria.network.plan import Move, PortPlan
from cria.network.reservation import TCP_REPAIR, standing_on, taken


def verify_listeners(plan: PortPlan, pids: Iterable[int], netns: Path | None = None) -> None:
    """Raise PortTaken where a stranger listens beside the restored processes `pids`.

    Raises RestoreFailed where a listener of `plan` does not stand. A reservation may still be held.
    """
    listening = [
        occupant for occupant in occupants(netns, named=False) if occupant.state == "LISTEN"
    ]
    ours = inodes_of(pids)
    occupied = standing_on(_listening(plan), listening)
    strangers = {
        occupant.inode: (target, occupant)
        for target, occupant in occupied
        if occupant.inode not in ours
    }
    if strangers:
        targets, others = zip(*strangers.values(), strict=True)
        raise taken(targets, others, owners_of(strangers))
    stand = Counter(_key(occupant.local) for occupant in listening if occupant.inode in ours)
    missing = Counter(_key(move.new) for move in plan.listeners) - stand
    if missing:
        raise RestoreFailed(
            f"{sum(missing.values())} listener(s) of the engine do not stand",
            details="\n".join(f"nobody listens on {address} {port}" for address, port in missing),
        )


def clear_port_reuse(plan: PortPlan, netns: Path | None = None) -> None:
    """Make the restored TCP listeners of `plan` as exclusive as they were before the dump.

    CRIU binds with SO_REUSEPORT, and the kernel remembers that for the port even after CRIU has set the
    option back: any SO_REUSEPORT socket of the same user could still join. A socket bound without the
    option makes it forget; TCP_REPAIR lets that one bind over a listener. Needs CAP_NET_ADMIN.
    """
    within(netns, lambda: _forget(_listening(plan)))


def _forget(targets: Iterable[Target]) -> None:
    for target in targets:
        family = socket.AF_INET6 if target.family == "ipv6" else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not target.dual_stack)
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            sock.bind((target.local.address, target.local.port))


def _listening(plan: PortPlan) -> list[Target]:
    return list(dict.fromkeys(_target(move) for move in plan.listeners))


def _target(move: Move) -> Target:
    return Target(
        protocol=move.protocol, family=move.family, local=move.new, dual_stack=move.dual_stack
    )


def _key(end: Endpoint) -> tuple[str, int]:
    return plain(end.address), end.port
