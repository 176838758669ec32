"""The port plan as a table that a person can read."""

from __future__ import annotations

from cria.ports.moves import Move, PortPlan

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
