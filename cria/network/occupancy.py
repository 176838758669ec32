"""Ask the kernel who stands on which port of a network namespace, and name the processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP
from typing import TypeVar

from cria.model.socket import STATES, Endpoint, Occupant, Protocol
from cria.system import sock_diag
from cria.system.sock_diag import InetRow

T = TypeVar("T")

_PROTOCOLS: dict[int, Protocol] = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}
_PROC = Path("/proc")


def occupants(
    netns: Path | None = None, *, named: bool = True, near: Collection[int] | None = None
) -> tuple[Occupant, ...]:
    """Every TCP and UDP socket in the namespace at `netns` (/proc/PID/ns/net), or in cria's own.

    Connections that have ended and are only remembered (TIME_WAIT) are among them. Owners are looked
    up where `named`, which reads all of /proc; only of those on the ports `near`, if given. Needs no rights for the own namespace; raises OSError
    where another cannot be entered.
    """
    rows = within(netns, _rows)
    asked = (row for row in rows if row.inode and (near is None or row.source_port in near))
    owners = owners_of({row.inode for row in asked}) if named else {}
    return tuple(_occupant(row, owners) for row in rows)


def within(netns: Path | None, call: Callable[[], T]) -> T:
    """Run `call` in the network namespace at `netns`, or here."""
    return call() if netns is None else sock_diag.in_namespace(netns, call)


def owners_of(inodes: Iterable[int], proc: Path = _PROC) -> dict[int, str]:
    """Who has the sockets with `inodes` open, as `PID 12 (python)`; only those that can be seen."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[int, list[str]] = {}
    for process in proc.iterdir() if wanted else ():
        if process.name.isdigit():
            for inode in {wanted[link] for link in _links(process) if link in wanted}:
                owners.setdefault(inode, []).append(_named(process))
    return {inode: ", ".join(names) for inode, names in owners.items()}


def inodes_of(pids: Iterable[int], proc: Path = _PROC) -> frozenset[int]:
    """The inodes of all sockets that the processes `pids` have open."""
    links = (link for pid in pids for link in _links(proc / str(pid)))
    return frozenset(int(link[8:-1]) for link in links if link.startswith("socket:["))


def _rows() -> list[InetRow]:
    return [
        row
        for protocol in (IPPROTO_TCP, IPPROTO_UDP)
        for family in (AF_INET, AF_INET6)
        for row in sock_diag.inet_rows(family, protocol, sock_diag.WITH_TIME_WAIT)
        if row.source_port
    ]


def _occupant(row: InetRow, owners: dict[int, str]) -> Occupant:
    far = Endpoint(address=row.destination, port=row.destination_port)
    return Occupant(
        protocol=_PROTOCOLS[row.protocol],
        state=STATES.get(row.state, str(row.state)),
        local=Endpoint(address=row.source, port=row.source_port),
        peer=far if row.destination_port else None,
        dual_stack=row.family == AF_INET6 and not row.v6_only,
        inode=row.inode,
        owner=owners.get(row.inode, ""),
    )


def _links(process: Path) -> list[str]:
    links = []
    try:
        for fd in (process / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile, like the one that lists them
                links.append(str(fd.readlink()))
    except OSError:
        pass  # the process has ended, or belongs to somebody else
    return links


def _named(process: Path) -> str:
    try:
        return f"PID {process.name} ({(process / 'comm').read_text().strip()})"
    except OSError:
        return f"PID {process.name}"
