"""The working set: the memory that an engine needed until its first answer, kept for its next lazy restore."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cria.memory.lazy.missing import Missing, Piece


class WorkingSet(msgspec.Struct, frozen=True, kw_only=True):
    """The pieces that were loaded, in that order: PID and address at the dump of each, and no content."""

    checkpoint: str
    pieces: tuple[tuple[int, int], ...]


def identity(manifest: Path) -> str:
    """Return what tells a checkpoint from another of the same name: a digest of its manifest."""
    return hashlib.blake2b(manifest.read_bytes(), digest_size=16).hexdigest()


def path_for(checkpoint: Path) -> Path:
    """Return where the working set of a checkpoint is kept: beside it, for the checkpoint never changes."""
    return checkpoint.with_name(f".{checkpoint.name}.working-set.json")


def read(path: Path, checkpoint: str) -> WorkingSet | None:
    """Read the working set of this checkpoint, or None where there is none that can be read."""
    try:
        working_set = msgspec.json.decode(path.read_bytes(), type=WorkingSet)
    except (OSError, msgspec.DecodeError):
        return None
    return working_set if working_set.checkpoint == checkpoint else None


def write(path: Path, working_set: WorkingSet) -> None:
    """Write a working set that only the owner can read. Raises OSError."""
    staged = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(working_set))
    staged.rename(path)


def pieces(
    working_set: WorkingSet | None, missing: Mapping[int, Missing]
) -> dict[int, list[Piece]]:
    """Return the pieces of each process that the working set lists, in its order.

    The working set is a hint: what it lists and is not missing is left out.
    """
    result: dict[int, list[Piece]] = {pid: [] for pid in missing}
    for pid, address in working_set.pieces if working_set is not None else ():
        piece = missing[pid].at(address) if pid in missing else None
        if piece is not None:
            result[pid].append(piece)
    return result
