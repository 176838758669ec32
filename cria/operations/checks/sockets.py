"""Checks of an engine's sockets: connections that lead outside, and kinds that CRIU does not know."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from cria.model.inventory import Descriptor, Inventory, Socket
from cria.operations.checks.rows import Row, fail, holders, named, owner_of, warn
from cria.system.procfs import PROC
from cria.system.sockets import Rows, read_namespace

# What the kernel calls the protocols that CRIU dumps (criu/sockets.c).
_KNOWN = ("TCP", "UDP", "RAW", "PING", "UNIX", "NETLINK", "PACKET")
# The other end has ended these: a restored engine reads the end of file that it would read anyway.
_HUNG_UP = {"CLOSE_WAIT", "LAST_ACK", "CLOSING", "FIN_WAIT1", "FIN_WAIT2"}
_LOOKS, _BETWEEN_LOOKS = 5, 0.05


def connections(inventory: Inventory) -> Iterator[Row]:
    """Connections with one end inside: clients of the HTTP API may hang up, others may not."""
    published = {s.local.port for s in inventory.api_listeners()}
    for socket in inventory.sockets:
        if socket.protocol != "tcp" or socket.peer is None or socket.peer_holders:
            continue
        if socket.local.port in published:
            yield warn("an HTTP client is connected", f"{socket.peer}; it is cut off by a restore")
        elif socket.state in _HUNG_UP:
            yield warn("a connection is half closed", f"{_ends(socket)}; a restore closes it")
        elif inventory.is_engine or socket.state == "ESTABLISHED":
            yield fail(
                "a connection has only one end inside the engine",
                f"{holders(inventory, socket.holders)}: {_ends(socket)}{_far_owner(socket)}",
                "end what uses it, or start the engine without it",
                pid=socket.holders[0].pid if socket.holders else None,
                fd=socket.holders[0].fd if socket.holders else None,
            )


def unix_halves(inventory: Inventory) -> Iterator[Row]:
    """Stream connections with one end inside."""
    for socket in inventory.unix_sockets:
        if socket.kind == "dgram" or not socket.peer_inode or socket.peer_holders:
            continue
        name = f" at {socket.path}" if socket.path else ""
        other = owner_of(socket.peer_inode, "a process that cannot be seen")
        yield fail(
            "a unix stream connection has only one end inside the engine",
            f"{holders(inventory, socket.holders)}{name}; the other end is held by {other}",
            "end that process, or what connects to it",
            pid=socket.holders[0].pid if socket.holders else None,
            fd=socket.holders[0].fd if socket.holders else None,
        )


def unix_waiting(inventory: Inventory) -> Iterator[Row]:
    """Connections that nobody outside has accepted: CRIU dumps them, and cannot restore them."""
    waiting = [
        socket
        for socket in inventory.unix_sockets
        if socket.kind != "dgram" and socket.state == "ESTABLISHED" and not socket.peer_inode
    ]
    # One that waits at a listener of the engine itself is restored with it.
    inside = (s for s in inventory.unix_sockets if s.state == "LISTEN")
    if not waiting or any(listener.receive_queue for listener in inside):
        return
    hung_up = {row.inode for row in _rows(inventory.root.pid, waiting[0].netns).unix if row.hung_up}
    for socket in waiting:
        if socket.inode not in hung_up:
            yield fail(
                "a unix stream connection waits to be accepted outside the engine",
                f"{holders(inventory, socket.holders)}; a restore could not connect it again",
                "try again; if it stays, end what connects to that server",
                pid=socket.holders[0].pid if socket.holders else None,
                fd=socket.holders[0].fd if socket.holders else None,
            )


def other_protocols(inventory: Inventory, proc: Path = PROC) -> Iterator[Row]:
    """Sockets of a family or protocol that CRIU does not know: MPTCP, VSOCK, SCTP, RDMA and others."""
    unix = {s.inode for s in inventory.unix_sockets}
    for descriptor in inventory.descriptors:
        # Those listed as TCP too: the kernel shows an MPTCP socket by its first TCP flow.
        if descriptor.kind != "socket" or descriptor.inode in unix:
            continue
        protocol = _protocol(descriptor, proc)
        if protocol and not protocol.startswith(_KNOWN):
            yield fail(
                f"{named(inventory, descriptor.pid)} holds a socket of protocol {protocol}",
                f"fd {descriptor.fd}; CRIU cannot dump it",
                "GODEBUG=multipathtcp=0 turns MPTCP off in Go programs"
                if protocol.startswith("MPTCP")
                else "start the engine without what uses it",
                pid=descriptor.pid,
                fd=descriptor.fd,
            )


def unread_netlink(inventory: Inventory, proc: Path = PROC) -> Iterator[Row]:
    """Netlink sockets with messages that nobody has read: CRIU refuses them."""
    others = {descriptor.inode: descriptor for descriptor in _unlisted(inventory)}
    if not others:
        return
    for line in Path(f"{proc}/{inventory.root.pid}/net/netlink").read_text().splitlines()[1:]:
        fields = line.split()
        held = others.get(int(fields[9]))
        if held is not None and int(fields[4]):
            yield fail(
                f"{named(inventory, held.pid)} has not read its netlink messages",
                f"fd {held.fd}: {fields[4]} bytes wait; CRIU cannot dump them",
                "try again; if it stays, start the engine without what watches the network",
                pid=held.pid,
                fd=held.fd,
            )


def corked(inventory: Inventory) -> Iterator[Row]:
    """UDP data that are written and held back (UDP_CORK, MSG_MORE)."""
    for socket in inventory.sockets:
        if socket.protocol == "udp" and socket.send_queue and socket.holders:
            yield fail(
                "a UDP socket has not sent what was written to it",
                f"{holders(inventory, socket.holders)}: {socket.local}, {socket.send_queue} bytes;"
                " CRIU cannot dump it while it is corked",
                "try again; if it stays, start the engine without what uses it",
                pid=socket.holders[0].pid,
                fd=socket.holders[0].fd,
            )


def accept_queues(inventory: Inventory) -> Iterator[Row]:
    """Connections that wait to be accepted: CRIU refuses them, but most are gone in a moment."""
    for socket in inventory.listeners():
        waiting = _waits(socket) if socket.receive_queue else 0
        if waiting:
            yield fail(
                "connections wait to be accepted",
                f"{waiting} at {socket.local} of {holders(inventory, socket.holders)}",
                "try again, or drop them: cria dump --skip-in-flight",
                pid=socket.holders[0].pid if socket.holders else None,
                fd=socket.holders[0].fd if socket.holders else None,
            )


def unread_datagrams(inventory: Inventory) -> Iterator[Row]:
    """UDP data that nobody has read: CRIU drops them."""
    for socket in inventory.sockets:
        if socket.protocol == "udp" and socket.receive_queue:
            yield warn(
                "a UDP socket has data that nobody has read",
                f"{holders(inventory, socket.holders)}: {socket.local}, {socket.receive_queue}"
                " bytes; they are lost in the checkpoint",
            )


def _unlisted(inventory: Inventory) -> list[Descriptor]:
    """The sockets that are neither TCP nor UDP nor unix, or not bound yet."""
    listed = {s.inode for s in inventory.sockets} | {s.inode for s in inventory.unix_sockets}
    held = (descriptor for descriptor in inventory.descriptors if descriptor.kind == "socket")
    return [descriptor for descriptor in held if descriptor.inode not in listed]


def _waits(socket: Socket) -> int:
    """How many connections still wait at a listener after a quarter of a second."""
    pid = socket.holders[0].pid if socket.holders else os.getpid()
    waiting = socket.receive_queue
    for _ in range(_LOOKS):
        time.sleep(_BETWEEN_LOOKS)
        rows = _rows(pid, socket.netns).inet
        waiting = next((r.receive_queue for r in rows if r.inode == socket.inode), 0)
        if not waiting:
            break
    return waiting


def _rows(pid: int, netns: int) -> Rows:
    return read_namespace(netns, f"{PROC}/{pid}/ns/net")


def _ends(socket: Socket) -> str:
    return f"{socket.local} -> {socket.peer} ({socket.state})"


def _far_owner(socket: Socket) -> str:
    """Who holds the other end, where it is on this host and in our network namespace."""
    from cria.network.occupancy import occupants

    for there in occupants(named=False):
        if there.local == socket.peer and there.peer == socket.local:
            return f", the other end held by {owner_of(there.inode, 'no process of this host')}"
    return ""


def _protocol(held: Descriptor, proc: Path) -> str | None:
    """What the kernel calls a socket's protocol (sockfs's attribute, which lsof reads too)."""
    try:
        raw = os.getxattr(f"{proc}/{held.pid}/fd/{held.fd}", "system.sockprotoname")
    except OSError:
        return None
    return raw.rstrip(b"\0").decode(errors="replace")
