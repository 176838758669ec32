"""The port plan: every socket of a checkpoint, where it stands and where it will."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from cria.model.socket import Endpoint, Family, Occupant, PortSocket, Protocol, Target, plain
from cria.network.groups import Kind


class Move(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One socket of the checkpoint: its endpoints as they are and as they will be, and why.

    `old == new` where it stays. With `closes` the socket is restored as one whose peer has hung up and
    `new` is port 0. `memory` says what in the engine goes on knowing the old number, if anything.
    """

    id: int
    inode: int
    ns_id: int
    family: Family
    protocol: Protocol
    state: str
    kind: Kind
    old: Endpoint
    new: Endpoint
    old_peer: Endpoint | None = None
    new_peer: Endpoint | None = None
    dual_stack: bool = False
    closes: bool = False
    role: str = ""
    owner: str = ""
    why: str = ""
    memory: str = ""

    @property
    def changes(self) -> bool:
        return self.closes or self.old != self.new or self.old_peer != self.new_peer

    @property
    def one_ended(self) -> bool:
        return self.kind in {"client", "outside"}

    @property
    def stands(self) -> bool:
        """Whether it is a listener, or a UDP or TCP socket that is bound only."""
        return self.kind in {"listener", "bound"}


class PortPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Every socket of a checkpoint with its old and new endpoints; print it to see a table."""

    moves: tuple[Move, ...]

    def __iter__(self) -> Iterator[Move]:
        return iter(self.moves)

    def __len__(self) -> int:
        return len(self.moves)

    def __str__(self) -> str:

        return table(self)

    @property
    def changes(self) -> tuple[Move, ...]:
        """The sockets whose entry in the image changes."""
        return tuple(move for move in self.moves if move.changes)

    @property
    def moved_ports(self) -> dict[int, int]:
        """The new port of every listening or bound port that moves."""
        stands = (move for move in self.moves if move.stands and move.old.port != move.new.port)
        return {move.old.port: move.new.port for move in stands}

    def new_port(self, old: int) -> int:
        """Where `old` goes: itself where it stays or is not known."""
        return self.moved_ports.get(old, old)

    @property
    def listeners(self) -> tuple[Move, ...]:
        return tuple(move for move in self.moves if move.kind == "listener")

    @property
    def targets(self) -> tuple[Target, ...]:
        """The local endpoints to reserve before the restore: those that cover all it will bind."""
        wanted = {_target(move) for move in self.moves if not (move.closes or move.one_ended)}
        targets: dict[tuple[Protocol, int], list[Target]] = {}
        for target in sorted(wanted, key=_narrowness):
            at = targets.setdefault((target.protocol, target.local.port), [])
            if not any(target.meets(other.local.address, other.dual_stack) for other in at):
                at.append(target)
        return tuple(sorted(target for at in targets.values() for target in at))

    def occupants(self, owner: str) -> tuple[Occupant, ...]:
        """What will stand there once this plan is restored, as the next plan sees it."""
        return tuple(
            Occupant(
                protocol=move.protocol,
                state=move.state,
                local=move.new,
                peer=move.new_peer,
                dual_stack=move.dual_stack,
                ns_id=move.ns_id,
                owner=owner,
            )
            for move in self.moves
            if not move.closes
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values: `ports` old to new, `sockets` one object for each socket."""
        sockets = msgspec.to_builtins(self.moves)
        return {
            "ports": {str(old): new for old, new in sorted(self.moved_ports.items())},
            "sockets": sockets,
        }


def _target(move: Move) -> Target:
    address = plain(move.new.address)
    return Target(
        protocol=move.protocol,
        family="ipv6" if ":" in address else "ipv4",
        local=Endpoint(address=address, port=move.new.port),
        dual_stack=move.dual_stack and address == "::",
        outgoing=move.kind == "outgoing",
    )


def _narrowness(target: Target) -> tuple[int, bool, Target]:
    wild = {"::": 0 if target.dual_stack else 1, "0.0.0.0": 1}
    return wild.get(target.local.address, 2), target.outgoing, target


_HEAD = ("NS", "PROTO", "ROLE", "PROCESS", "OLD", "NEW", "WHY")


def table(plan: PortPlan) -> str:
    """One line for each socket, what stands first, then connections; what memory knows underneath."""
    if not plan.moves:
        return "no sockets"
    moves = sorted(plan, key=lambda move: (move.ns_id, not move.stands, move.old, move.id))
    rows = [_HEAD, *map(_row, moves)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    lines = ["  ".join((*map(str.ljust, row, widths), row[-1])) for row in rows]
    return "\n".join([*lines, *_remembered(moves)])


def _row(move: Move) -> tuple[str, ...]:
    new = "closed" if move.closes else _ends(move.new, move.new_peer) if move.changes else "="
    old = _ends(move.old, move.old_peer)
    return str(move.ns_id), move.protocol, move.role, move.owner, old, new, move.why


def _ends(local: object, peer: object | None) -> str:
    return f"{local} -> {peer}" if peer else str(local)


def _remembered(moves: list[Move]) -> list[str]:
    notes = dict.fromkeys(f"{move.role}: {move.memory}" for move in moves if move.memory)
    return ["", "Still in memory:", *(f"  {note}" for note in notes)] if notes else []


NCCL_STAYS = "NCCL keeps the addresses of its peers in memory and dials them again"

# By a word in the role; the first that fits. Sources: the modules named in docs/explanation/ports.md.
_KNOWN = (
    ("nccl", NCCL_STAYS),
    ("zmq", "a ZMQ client whose connection breaks dials port {old} again"),
    ("tcpstore", "a store client that is cloned, or a new process group, dials port {old}"),
    ("gloo", "only a new process group, or one with TORCH_GLOO_LAZY_INIT=1, dials port {old}"),
    ("http", "the log and the engine's own messages name port {old}"),
)


def remembered(socket: PortSocket, new: int) -> str:
    """What still knows the old port of `socket` when it becomes `new`; empty where nothing does."""
    if new == socket.local.port or socket.peer is not None:
        return ""
    role = socket.role.lower().replace(" ", "")
    for word, text in _KNOWN:
        if word in role:
            return text.format(old=socket.local.port)
    return ""


def pinned(role: str, state: str) -> str:
    """Why a socket of that role cannot move, or nothing."""
    return NCCL_STAYS if state == "LISTEN" and "nccl" in role.lower() else ""
