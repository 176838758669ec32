"""Lock connections while their queues are refilled, and take away the locks that CRIU leaves behind.

A lock drops the packets of a connection. CRIU locks the connections of the image when it dumps; on the
new ports there is no lock, so that data sent before the other end exists would be answered with a reset.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

from cria.criu.images.directory import CriuImages
from cria.errors import PrivilegeMissing
from cria.model.socket import Endpoint, plain
from cria.network.occupancy import within
from cria.network.plan import Move, PortPlan
from cria.system.netfilter import CRIU_MARK, Connection, Netfilter

# Source: criu/netfilter.c. CRIU 4.3 names its table after the whole run ID, others after the first part.
_RUN_ID_PART = 21


def needed(images: CriuImages, plan: PortPlan) -> tuple[Connection, ...]:
    """The new connections of `plan` that need a lock: those with full queues, or half closed.

    None is needed where every moved connection is ESTABLISHED and empty, as quiesce leaves them.
    """
    return tuple(
        (move.new, move.new_peer)
        for move in plan.changes
        if move.new_peer is not None
        and move.protocol == "tcp"
        and (move.state != "ESTABLISHED" or images.queued_bytes(move.inode))
    )


@contextmanager
def locked(connections: tuple[Connection, ...], netns: Path | None = None) -> Iterator[None]:
    """Drop every packet of `connections`, both ways, while the context lasts; not CRIU's own.

    The rules belong to a socket of this process: when it ends in any way the kernel takes them away.
    Raises PrivilegeMissing without CAP_NET_ADMIN.
    """
    if not connections:
        yield
        return
    netfilter = within(netns, Netfilter)
    try:
        netfilter.drop(f"cria-{getpid()}-{id(netfilter):x}", connections)
    except PermissionError as error:
        netfilter.close()
        raise PrivilegeMissing("locking connections needs CAP_NET_ADMIN") from error
    try:
        yield
    finally:
        netfilter.close()


def stale_tables(images: CriuImages, netns: Path | None = None) -> tuple[str, ...]:
    """The nftables tables that the dump of `images` left; CRIU removes them at a restore."""
    run_id = images.inventory.run_id
    if not run_id:
        return ()
    name = f"CRIU-{run_id[:_RUN_ID_PART]}"
    with within(netns, Netfilter) as netfilter:
        return tuple(table for table in netfilter.tables() if table.startswith(name))


def remove_stale_locks(
    images: CriuImages, plan: PortPlan | None = None, netns: Path | None = None
) -> int:
    """Remove the locks that a dump left and no restore has removed; how many there were.

    Tables are found by the run ID. Rules of `iptables` are those of the old ports of `plan`: CRIU
    removes only those of the ports in the image that it restores, which are the new ones.
    """
    tables = stale_tables(images, netns)
    with within(netns, Netfilter) as netfilter:
        for table in tables:
            netfilter.delete(table)
    by_iptables = images.inventory.network_lock == "iptables"
    moves = plan.changes if plan is not None and by_iptables else ()
    rules = [rule for move in moves for rule in iptables_rules(move)]
    return len(tables) + within(netns, lambda: sum(map(delete_rule, rules)))


def iptables_rules(move: Move) -> list[list[str]]:
    """The commands that delete CRIU's two rules for one socket's old ends. Source: criu/netfilter.c."""
    if move.old_peer is None or move.protocol != "tcp":
        return []
    return [
        _rule("INPUT", move.old_peer, move.old),
        _rule("OUTPUT", move.old, move.old_peer),
    ]


def _rule(chain: str, source: Endpoint, destination: Endpoint) -> list[str]:
    near, far = plain(source.address), plain(destination.address)
    program = "ip6tables" if ":" in near else "iptables"
    return [
        *(program, "-w", "-t", "filter", "-D", chain, "--protocol", "tcp"),
        *("-m", "mark", "!", "--mark", hex(CRIU_MARK)),
        *("--source", near, "--sport", str(source.port)),
        *("--destination", far, "--dport", str(destination.port), "-j", "DROP"),
    ]


def delete_rule(rule: list[str]) -> bool:
    """Run one such command; False where there was no such rule, or there is no iptables."""
    if shutil.which(rule[0]) is None:
        return False
    return subprocess.run(rule, check=False, capture_output=True).returncode == 0
