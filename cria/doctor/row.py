"""One line of a diagnosis: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from cria.errors import CriaError, EngineBlocked

Level = Literal["ok", "warn", "fail", "skip"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A finding. A check returns rows and never raises; `kind` is the error a failed row becomes."""

    subject: str
    value: str
    level: Level
    remedy: str | None = None
    kind: type[CriaError] = EngineBlocked


def ok(subject: str, value: str) -> Row:
    return Row(subject=subject, value=value, level="ok")


def warn(subject: str, value: str, remedy: str | None = None) -> Row:
    return Row(subject=subject, value=value, level="warn", remedy=remedy)


def fail(
    subject: str, value: str, remedy: str | None = None, kind: type[CriaError] = EngineBlocked
) -> Row:
    return Row(subject=subject, value=value, level="fail", remedy=remedy, kind=kind)


def raise_first(rows: Iterable[Row], what: str) -> None:
    """Turn failed rows into one error: the kind and remedy of the first, the facts of all."""
    failed = [row for row in rows if row.level == "fail"]
    if failed:
        first = failed[0]
        raise first.kind(
            f"{what}: {first.subject}",
            details="\n".join(f"{row.subject}: {row.value}" for row in failed),
            remedy=first.remedy,
        )
