"""One line of a diagnosis: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from cria.errors import CriaError, EngineBlocked
from cria.model.inventory import Holder, Inventory
from cria.system.procfs import PROC

Level = Literal["ok", "warn", "fail", "skip"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A finding. A check returns rows and never raises; `kind` is the error a failed row becomes.

    `pid` and `fd` say who holds the thing, where somebody does. `recorded` is what a checkpoint knows
    of it; `value` then is what is here.
    """

    subject: str
    value: str
    level: Level
    remedy: str | None = None
    kind: type[CriaError] = EngineBlocked
    group: str = ""
    pid: int | None = None
    fd: int | None = None
    recorded: str | None = None

    def told(self) -> str:
        """What was found, with what was recorded where it is a comparison."""
        return f"{self.value} (recorded: {self.recorded})" if self.recorded else self.value


def ok(subject: str, value: str) -> Row:
    return Row(subject=subject, value=value, level="ok")


def skip(subject: str, value: str) -> Row:
    return Row(subject=subject, value=value, level="skip")


def warn(
    subject: str,
    value: str,
    remedy: str | None = None,
    *,
    pid: int | None = None,
    fd: int | None = None,
    recorded: str | None = None,
) -> Row:
    return Row(
        subject=subject,
        value=value,
        level="warn",
        remedy=remedy,
        pid=pid,
        fd=fd,
        recorded=recorded,
    )


def fail(
    subject: str,
    value: str,
    remedy: str | None = None,
    kind: type[CriaError] = EngineBlocked,
    *,
    pid: int | None = None,
    fd: int | None = None,
    recorded: str | None = None,
) -> Row:
    return Row(
        subject=subject,
        value=value,
        level="fail",
        remedy=remedy,
        kind=kind,
        pid=pid,
        fd=fd,
        recorded=recorded,
    )


def of_error(error: CriaError) -> Row:
    """The row that says what an error says."""
    value = "; ".join((error.details or error.message).splitlines())
    return fail(error.message, value, error.remedy, type(error))


def rows_of(check: Callable[..., Iterable[Row]], *facts: Any) -> Iterator[Row]:
    """The rows of one check; what it could not look at becomes a row too."""
    try:
        yield from check(*facts)
    except CriaError as error:
        yield of_error(error)
    except (OSError, ValueError) as error:
        yield skip(check.__name__.replace("_", " "), f"could not be looked at: {error}")


def raise_first(rows: Iterable[Row], what: str) -> None:
    """Turn failed rows into one error: the kind and remedy of the first, the facts of all."""
    failed = [row for row in rows if row.level == "fail"]
    if failed:
        first = failed[0]
        raise first.kind(
            f"{what}: {first.subject}",
            details="\n".join(f"{row.subject}: {row.told()}" for row in failed),
            remedy=first.remedy,
        )


def named(inventory: Inventory, pid: int) -> str:
    """A process of the engine by its PID, and by its role or else its name."""
    for process in inventory.processes:
        if process.pid == pid:
            has_role = process.role.confidence != "unknown"
            return f"process {pid} ({process.role.name if has_role else process.name})"
    return f"process {pid}"


def holders(inventory: Inventory, held: Iterable[Holder]) -> str:
    """Who has something open: each process with its descriptor."""
    return ", ".join(f"{named(inventory, h.pid)} fd {h.fd}" for h in held) or "no process"


def stranger(pid: int, proc: Path = PROC) -> str:
    """A process outside the engine by its PID and its name."""
    try:
        return f"PID {pid} ({Path(f'{proc}/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"PID {pid}"


def owner_of(inode: int, fallback: str) -> str:
    """Who on this host has the socket `inode` open. Reads all of /proc."""
    from cria.network.occupancy import owners_of

    return owners_of({inode}).get(inode, fallback) if inode else fallback
