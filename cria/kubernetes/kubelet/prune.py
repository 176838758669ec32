"""Remove old archives of a node, which nothing in Kubernetes does: by number, size and age, and only cria's own."""

from __future__ import annotations

import datetime
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from cria.errors import NotWritable, UsageError
from cria.kubernetes.kubelet import manifests

DAY_SECONDS = 86400.0


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What stays: of each container the newest `keep`, in all at most `most_bytes`, none older than `days`.

    The newest of a container goes only by its age.
    """

    keep: int | None = None
    most_bytes: int | None = None
    days: float | None = None


class StoredArchive(msgspec.Struct, frozen=True, kw_only=True):
    """An archive that has a manifest: `seconds` is its age."""

    path: str
    container: str
    bytes: int
    seconds: float


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    archive: StoredArchive
    why: str


class PruneResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed, or would be; `others` are archives without a manifest of cria's: they are not touched."""

    removed: tuple[Removal, ...]
    kept: tuple[StoredArchive, ...]
    others: int
    dry_run: bool

    @property
    def freed_bytes(self) -> int:
        return sum(each.archive.bytes for each in self.removed)


def prune(
    directory: str | os.PathLike[str], rule: RetentionPolicy, *, dry_run: bool = False
) -> PruneResult:
    """Remove from the directory of a node's archives what `rule` does not let stay, manifests included.

    Raises UsageError when there is no such directory or no rule, NotWritable.
    """
    if rule == RetentionPolicy():
        raise UsageError("nothing says what shall stay", remedy="give --keep, --most or --days")
    place = Path(directory)
    if not place.is_dir():
        raise UsageError(f"{place} is not a directory", remedy="name that of the node's archives")
    known, others = list_archives(place)
    removals = plan_removals(known, rule)
    if not dry_run:
        for each in removals:
            remove(Path(each.archive.path))
    gone = {each.archive.path for each in removals}
    return PruneResult(
        removed=removals,
        kept=tuple(each for each in known if each.path not in gone),
        others=others,
        dry_run=dry_run,
    )


def list_archives(directory: Path) -> tuple[tuple[StoredArchive, ...], int]:
    """The archives with a manifest beside them, newest first, and the number of the others."""
    known, others = [], 0
    now = datetime.datetime.now(datetime.UTC)
    for path in sorted(directory.glob("checkpoint-*.tar")):
        manifest = manifests.read(Path(f"{path}{manifests.SUFFIX}"))
        found = path.lstat()
        if manifest is None or not stat.S_ISREG(found.st_mode):
            others += 1
            continue
        age = now - datetime.datetime.fromisoformat(manifest.created)
        known.append(
            StoredArchive(
                path=str(path),
                container=str(manifest.container),
                bytes=found.st_blocks * 512,
                seconds=age.total_seconds(),
            )
        )
    return tuple(sorted(known, key=lambda each: each.seconds)), others


def plan_removals(known: Sequence[StoredArchive], rule: RetentionPolicy) -> tuple[Removal, ...]:
    """Which of these go, and why; `known` are newest first."""
    newest: dict[str, StoredArchive] = {}
    for each in known:
        newest.setdefault(each.container, each)
    removals, numbers = [], Counter[str]()
    # The newest of each container stay whatever the size, so theirs is taken first.
    room = None if rule.most_bytes is None else rule.most_bytes - _bytes(newest.values())
    for each in known:
        numbers[each.container] += 1
        why = _why(each, numbers[each.container], room, rule)
        if why:
            removals.append(Removal(archive=each, why=why))
        elif room is not None and each is not newest[each.container]:
            room -= each.bytes
    return tuple(removals)


def _bytes(archives: Iterable[StoredArchive]) -> int:
    return sum(each.bytes for each in archives)


def _why(each: StoredArchive, number: int, room: int | None, rule: RetentionPolicy) -> str | None:
    if rule.days is not None and each.seconds > rule.days * DAY_SECONDS:
        return f"older than {rule.days:g} days"
    if number == 1:
        return None
    if rule.keep is not None and number > rule.keep:
        return f"of its container {number - 1} are newer"
    if room is not None and each.bytes > room:
        return "with the newer ones it is too much"
    return None


def remove(archive: Path) -> None:
    """The archive first: a manifest that is left over says at least what there was."""
    try:
        archive.unlink(missing_ok=True)
        Path(f"{archive}{manifests.SUFFIX}").unlink(missing_ok=True)
    except OSError as error:
        raise NotWritable(
            f"{archive} cannot be removed",
            details=error.strerror,
            remedy="run this where the node's directory can be written",
        ) from error
