"""The sockets that a set of processes holds: who has them open and who is at the other end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from cria.model.inventory import Descriptor, Holder, Process, Socket, UnixSocket
from cria.model.socket import LISTEN, STATES, Endpoint
from cria.system import sock_diag
from cria.system.procfs import PROC
from cria.system.sock_diag import InetRow, UnixRow

KINDS: dict[int, Literal["stream", "dgram", "seqpacket"]] = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_DGRAM: "dgram",
    socket.SOCK_SEQPACKET: "seqpacket",
}
Holders = dict[int, tuple[Holder, ...]]


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """All sockets of one network namespace, as the kernel gives them."""

    inet: tuple[InetRow, ...]
    unix: tuple[UnixRow, ...]


class Sockets(msgspec.Struct, frozen=True, kw_only=True):
    """The sockets that a set of processes holds."""

    inet: tuple[Socket, ...]
    unix: tuple[UnixSocket, ...]


def sockets(
    processes: Iterable[Process], descriptors: Iterable[Descriptor], proc: Path = PROC
) -> Sockets:
    """Return the sockets behind `descriptors`, in every network namespace of `processes`.

    Raises OSError (EPERM) when a process is in another network namespace and cria is not root.
    """
    holders = holders_by_inode(descriptors)
    namespaces: dict[int, int] = {}
    for process in processes:
        if "net" in process.namespaces:
            namespaces.setdefault(process.namespaces["net"], process.pid)
    inet: list[Socket] = []
    unix: list[UnixSocket] = []
    for netns, pid in namespaces.items():
        try:
            rows = read_namespace(netns, f"{proc}/{pid}/ns/net")
        except FileNotFoundError:
            continue  # the process has ended meanwhile, and its descriptors with it
        inet.extend(inet_sockets(rows.inet, holders, netns))
        unix.extend(unix_sockets(rows.unix, holders, netns))
    return Sockets(inet=tuple(inet), unix=tuple(unix))


def holders_by_inode(descriptors: Iterable[Descriptor]) -> Holders:
    """Map each socket's inode to those who have it open."""
    holders: dict[int, list[Holder]] = {}
    for descriptor in descriptors:
        if descriptor.kind == "socket":
            holders.setdefault(descriptor.inode, []).append(
                Holder(pid=descriptor.pid, fd=descriptor.fd)
            )
    return {inode: tuple(sorted(of_inode)) for inode, of_inode in holders.items()}


def read_namespace(netns: int, path: str) -> Rows:
    """Read every socket of the namespace with inode `netns` that the file `path` leads to."""
    own = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116
    return _read() if own == netns else sock_diag.in_namespace(path, _read)


def _read() -> Rows:
    inet = [
        row
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        for family in (socket.AF_INET, socket.AF_INET6)
        for row in sock_diag.inet_rows(family, protocol)
    ]
    return Rows(inet=tuple(inet), unix=tuple(sock_diag.unix_rows()))


def inet_sockets(rows: Iterable[InetRow], holders: Holders, netns: int) -> list[Socket]:
    """Return the rows that somebody in `holders` has open, with their peers among them."""
    held = [row for row in rows if row.inode in holders]
    ends = {_end(row.protocol, row.source, row.source_port, row.destination, row.destination_port):
            row.inode for row in held}  # fmt: skip
    listed = []
    for row in held:
        other = ends.get(
            _end(row.protocol, row.destination, row.destination_port, row.source, row.source_port)
        )
        peer = holders[other] if other is not None and row.destination_port else ()
        listed.append(_inet_socket(row, holders[row.inode], peer, netns))
    return sorted(listed, key=lambda item: (item.state != "LISTEN", item.local, item.inode))


def unix_sockets(rows: Iterable[UnixRow], holders: Holders, netns: int) -> list[UnixSocket]:
    """Return the rows that somebody in `holders` has open, with their peers among them."""
    return [
        UnixSocket(
            kind=KINDS.get(row.kind, "stream"),
            state=STATES.get(row.state, str(row.state)),
            path=row.path,
            inode=row.inode,
            peer_inode=row.peer_inode,
            netns=netns,
            backlog=row.send_queue if row.state == LISTEN else None,
            receive_queue=row.receive_queue,
            holders=holders[row.inode],
            peer_holders=holders.get(row.peer_inode or 0, ()),
        )
        for row in sorted(rows, key=lambda row: row.inode)
        if row.inode in holders
    ]


def plain(address: str) -> str:
    """Return the v4 address inside a v4-mapped v6 one, and any other unchanged."""
    return address.removeprefix("::ffff:") if "." in address else address


def _end(
    protocol: int, source: str, source_port: int, destination: str, destination_port: int
) -> tuple[int, str, int, str, int]:
    return protocol, plain(source), source_port, plain(destination), destination_port


def _inet_socket(
    row: InetRow, holders: tuple[Holder, ...], peer: tuple[Holder, ...], netns: int
) -> Socket:
    listens = row.state == LISTEN
    v6 = row.family == socket.AF_INET6
    connected = Endpoint(address=row.destination, port=row.destination_port)
    return Socket(
        netns=netns,
        family="ipv6" if v6 else "ipv4",
        protocol="tcp" if row.protocol == socket.IPPROTO_TCP else "udp",
        state=STATES.get(row.state, str(row.state)),
        local=Endpoint(address=row.source, port=row.source_port),
        peer=connected if row.destination_port else None,
        inode=row.inode,
        uid=row.uid,
        backlog=row.send_queue if listens else None,
        receive_queue=row.receive_queue,
        send_queue=0 if listens else row.send_queue,
        dual_stack=v6 and not row.v6_only,
        holders=holders,
        peer_holders=peer,
    )
