"""What an engine touched until its first answer, in order: kept beside a checkpoint for its next lazy restore."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from cria.memory.lazy.missing import Missing, Piece


class WorkingSet(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses, and nothing that lay there: process and address at the dump, of each piece."""

    checkpoint: str
    pieces: tuple[tuple[int, int], ...]


def identity(manifest: Path) -> str:
    """What tells a checkpoint from another that may take its place: its manifest, which has all digests."""
    return hashlib.blake2b(manifest.read_bytes(), digest_size=16).hexdigest()


def place_for(checkpoint: Path) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.working-set.json")


def read(path: Path, checkpoint: str) -> WorkingSet | None:
    """The working set of this checkpoint; None when none was kept, or it cannot be read."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=WorkingSet)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.checkpoint == checkpoint else None


def write(path: Path, kept: WorkingSet) -> None:
    """Whole or not at all; only for the user whose checkpoint it is. Raises OSError."""
    staged = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(kept))
    staged.rename(path)


def in_order(kept: WorkingSet | None, missing: Mapping[int, Missing]) -> dict[int, list[Piece]]:
    """The pieces of each process that a working set tells of. Only a hint: what is not there is skipped."""
    found: dict[int, list[Piece]] = {pid: [] for pid in missing}
    for pid, piece in _pieces(kept.pieces if kept else (), missing):
        found[pid].append(piece)
    return found


def _pieces(
    told: Iterable[tuple[int, int]], missing: Mapping[int, Missing]
) -> Iterator[tuple[int, Piece]]:
    for pid, start in told:
        piece = missing[pid].at(start) if pid in missing else None
        if piece is not None:
            yield pid, piece
