"""What the planner knows of a socket and of who stands on a port already, and when two addresses overlap."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec

from cria.model.inventory import Endpoint, Family, Protocol

API_ROLE = "HTTP API"
UNKNOWN_ROLE = "unknown"

Policy = Literal["refuse", "close", "keep"]  # for a connection with one end in the checkpoint


class PortSocket(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A TCP or UDP socket of a checkpoint or of a live engine.

    `id` is the file ID in the image, or the inode where there is no image; `ns_id` CRIU's number of the
    network namespace. `pinned` says why its port cannot change, and is empty where it can.
    """

    id: int
    ns_id: int
    family: Family
    protocol: Protocol
    state: str
    local: Endpoint
    peer: Endpoint | None = None
    dual_stack: bool = False
    reuse_port: bool = False
    inode: int = 0
    role: str = UNKNOWN_ROLE
    owner: str = ""
    pinned: str = ""

    @property
    def listens(self) -> bool:
        return self.state == "LISTEN"

    @property
    def is_api(self) -> bool:
        return self.role == API_ROLE


class Occupant(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A socket that exists in the target namespace; `ns_id` None stands for every namespace of a plan."""

    protocol: Protocol
    state: str
    local: Endpoint
    peer: Endpoint | None = None
    dual_stack: bool = False
    inode: int = 0
    ns_id: int | None = None
    owner: str = ""

    @property
    def waits(self) -> bool:
        """It is only remembered by the kernel, for a minute, after its end."""
        return self.state == "TIME_WAIT"

    @property
    def connected(self) -> bool:
        return self.peer is not None

    def __str__(self) -> str:
        peer = f" to {self.peer}" if self.peer else ""
        owner = f" of {self.owner}" if self.owner else ""
        return f"{self.protocol} {self.local}{peer} ({self.state}){owner}"


class Target(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A local endpoint that a restore will bind, to be reserved before.

    `outgoing` where only connections begin there: CRIU binds those in repair mode, over anything.
    """

    protocol: Protocol
    family: Family
    local: Endpoint
    dual_stack: bool = False
    outgoing: bool = False

    def meets(self, address: str, dual_stack: bool) -> bool:
        """Whether a socket on this port at `address` would be in the way."""
        return overlap(self.local.address, self.dual_stack, address, dual_stack)

    def __str__(self) -> str:
        return f"{self.protocol} {self.local}"


@lru_cache(maxsize=4096)
def plain(address: str) -> str:
    """The v4 address inside a v4-mapped v6 one, and any other unchanged."""
    return address.removeprefix("::ffff:") if "." in address else address


def in_form_of(address: str, model: str) -> str:
    """`address`, written v4-mapped where `model` is a v6 address and it is a v4 one."""
    return f"::ffff:{plain(address)}" if ":" in model and "." in address else plain(address)


def overlap(one: str, one_dual: bool, other: str, other_dual: bool) -> bool:
    """Whether two sockets on one port would get in each other's way; `dual` as in V6ONLY off."""
    one, other = plain(one), plain(other)
    return one == other or _covers(one, one_dual, other) or _covers(other, other_dual, one)


def _covers(wild: str, dual: bool, address: str) -> bool:
    if wild == "0.0.0.0":
        return ":" not in address
    return wild == "::" and (dual or ":" in address)
