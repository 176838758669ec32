"""A socket as every room knows it, when the addresses of two of them overlap, and what the planner adds."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec

Family = Literal["ipv4", "ipv6"]
Protocol = Literal["tcp", "udp"]
Policy = Literal["refuse", "close", "keep"]  # for a connection with one end in the checkpoint

API_ROLE = "HTTP API"
UNKNOWN_ROLE = "unknown"

LISTEN = 10
TIME_WAIT = 6
# A port that is bound while its socket neither listens nor is connected; since Linux 6.8.
BOUND_INACTIVE = 13
# Source: include/net/tcp_states.h. Unix sockets use the same numbers, and so do CRIU's images.
STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    TIME_WAIT: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    LISTEN: "LISTEN",
    11: "CLOSING",
    12: "NEW_SYN_RECV",
    BOUND_INACTIVE: "BOUND_INACTIVE",
}


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, order=True, gc=False):
    """One end of an inet socket. `address` is in the text form of its family; port 0 is unbound."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"

    @property
    def http_url(self) -> str:
        """The URL by which a client on this host reaches a listener; a wildcard address becomes loopback."""
        loopback = "127.0.0.1" if self.address in ("0.0.0.0", "::") else self.address
        return f"http://{Endpoint(address=loopback, port=self.port)}"


class InetSocket(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What every room knows of a TCP or UDP socket; each adds what it needs besides.

    `state` is a name of STATES. `peer` is None where the socket is not connected. `dual_stack` says
    that an IPv6 socket takes IPv4 too (V6ONLY off). `inode` is 0 where it is not known.
    """

    family: Family
    protocol: Protocol
    state: str
    local: Endpoint
    peer: Endpoint | None = None
    dual_stack: bool = False
    inode: int = 0

    @property
    def listens(self) -> bool:
        return self.state == "LISTEN"

    @property
    def connected(self) -> bool:
        return self.peer is not None


class PortSocket(InetSocket, frozen=True, kw_only=True, gc=False):
    """A socket whose port is planned, of a checkpoint or of a live engine.

    `id` is the file ID in the image, or the inode where there is no image; `ns_id` CRIU's number of the
    network namespace. `pinned` says why the port cannot change, and is empty where it can.
    """

    id: int
    ns_id: int
    reuse_port: bool = False
    role: str = UNKNOWN_ROLE
    owner: str = ""
    pinned: str = ""

    @property
    def is_api(self) -> bool:
        return self.role == API_ROLE


class Occupant(InetSocket, frozen=True, kw_only=True, gc=False):
    """A socket that uses a port already. `owner` names its process, where that was asked for."""

    family: Family = "ipv4"
    ns_id: int | None = None
    owner: str = ""

    @property
    def in_time_wait(self) -> bool:
        """Whether the socket has ended and the kernel remembers it for a minute."""
        return self.state == "TIME_WAIT"

    def __str__(self) -> str:
        peer = f" to {self.peer}" if self.peer else ""
        owner = f" of {self.owner}" if self.owner else ""
        return f"{self.protocol} {self.local}{peer} ({self.state}){owner}"


class Target(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A local endpoint that a restore will bind, and that is reserved before.

    With `outgoing` only connections start there: CRIU binds those in repair mode, over anything.
    """

    protocol: Protocol
    family: Family
    local: Endpoint
    dual_stack: bool = False
    outgoing: bool = False

    def meets(self, address: str, dual_stack: bool) -> bool:
        """Say whether a socket on this port at `address` would be in the way."""
        return overlap(self.local.address, self.dual_stack, address, dual_stack)

    def __str__(self) -> str:
        return f"{self.protocol} {self.local}"


@lru_cache(maxsize=4096)
def plain(address: str) -> str:
    """Return the IPv4 address inside a v4-mapped IPv6 one, and any other address unchanged."""
    return address.removeprefix("::ffff:") if "." in address else address


def in_form_of(address: str, model: str) -> str:
    """Return an IPv4 `address` as v4-mapped where `model` is an IPv6 address, else as IPv4."""
    return f"::ffff:{plain(address)}" if ":" in model and "." in address else plain(address)


def overlap(one: str, one_dual: bool, other: str, other_dual: bool) -> bool:
    """Say whether sockets on one port at these addresses exclude each other; dual means V6ONLY off."""
    one, other = plain(one), plain(other)
    return one == other or _covers(one, one_dual, other) or _covers(other, other_dual, one)


def _covers(wildcard: str, dual: bool, address: str) -> bool:
    if wildcard == "0.0.0.0":
        return ":" not in address
    return wildcard == "::" and (dual or ":" in address)
