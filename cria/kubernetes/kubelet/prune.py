"""Remove old archives of a node by number, size and age: those with a manifest of cria. Kubernetes removes none."""

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
BLOCK_BYTES = 512  # of st_blocks (stat(2))


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Which archives stay: the newest `keep` of each container, at most `max_bytes` in all, none older than `days`.

    The newest archive of a container is removed only for its age.
    """

    keep: int | None = None
    max_bytes: int | None = None
    days: float | None = None


class StoredArchive(msgspec.Struct, frozen=True, kw_only=True):
    """An archive that has a manifest. `bytes` are those that it takes on the disk, `seconds` is its age."""

    path: str
    container: str
    bytes: int
    seconds: float


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """An archive to remove, and why."""

    archive: StoredArchive
    why: str


class PruneResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed, or would be; `others` is the number of archives without cria's manifest, which stay."""

    removed: tuple[Removal, ...]
    kept: tuple[StoredArchive, ...]
    others: int
    dry_run: bool

    @property
    def freed_bytes(self) -> int:
        return sum(removal.archive.bytes for removal in self.removed)


def prune(
    directory: str | os.PathLike[str], policy: RetentionPolicy, *, dry_run: bool = False
) -> PruneResult:
    """Remove from a node's directory of archives what `policy` does not keep, with the manifests.

    Raises UsageError when there is no such directory or the policy is empty, NotWritable.
    """
    if policy == RetentionPolicy():
        raise UsageError(
            "nothing says which archives to keep", remedy="give --keep, --most or --days"
        )
    path = Path(directory)
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory", remedy="name that of the node's archives")
    archives, others = list_archives(path)
    removals = plan_removals(archives, policy)
    if not dry_run:
        for removal in removals:
            _remove(Path(removal.archive.path))
    removed = {removal.archive.path for removal in removals}
    return PruneResult(
        removed=removals,
        kept=tuple(archive for archive in archives if archive.path not in removed),
        others=others,
        dry_run=dry_run,
    )


def list_archives(directory: Path) -> tuple[tuple[StoredArchive, ...], int]:
    """Return the archives with a manifest beside them, the newest first, and the number of others."""
    archives, others = [], 0
    now = datetime.datetime.now(datetime.UTC)
    for path in directory.glob("checkpoint-*.tar"):
        manifest = manifests.read(Path(f"{path}{manifests.SUFFIX}"))
        status = path.lstat()
        if manifest is None or not stat.S_ISREG(status.st_mode):
            others += 1
            continue
        age = now - datetime.datetime.fromisoformat(manifest.created)
        archives.append(
            StoredArchive(
                path=str(path),
                container=str(manifest.container),
                bytes=status.st_blocks * BLOCK_BYTES,
                seconds=age.total_seconds(),
            )
        )
    return tuple(sorted(archives, key=lambda archive: (archive.seconds, archive.path))), others


def plan_removals(
    archives: Sequence[StoredArchive], policy: RetentionPolicy
) -> tuple[Removal, ...]:
    """Return which of these archives, the newest first, `policy` does not keep."""
    newest: dict[str, StoredArchive] = {}
    for archive in archives:
        newest.setdefault(archive.container, archive)
    removals, numbers = [], Counter[str]()
    # The newest archive of each container stays whatever its size, so that its bytes are subtracted first.
    left = None if policy.max_bytes is None else policy.max_bytes - _bytes(newest.values())
    for archive in archives:
        numbers[archive.container] += 1
        why = _why_remove(archive, numbers[archive.container], left, policy)
        if why:
            removals.append(Removal(archive=archive, why=why))
        elif left is not None and archive is not newest[archive.container]:
            left -= archive.bytes
    return tuple(removals)


def _bytes(archives: Iterable[StoredArchive]) -> int:
    return sum(archive.bytes for archive in archives)


def _why_remove(
    archive: StoredArchive, number: int, left: int | None, policy: RetentionPolicy
) -> str | None:
    if policy.days is not None and archive.seconds > policy.days * DAY_SECONDS:
        return f"older than {policy.days:g} days"
    if number == 1:
        return None
    if policy.keep is not None and number > policy.keep:
        return f"its container has {number - 1} newer ones"
    if left is not None and archive.bytes > left:
        return "too large beside the newer ones"
    return None


def _remove(archive: Path) -> None:
    """Remove an archive, then its manifest: if only one is removed, the manifest still says what there was."""
    try:
        archive.unlink(missing_ok=True)
        Path(f"{archive}{manifests.SUFFIX}").unlink(missing_ok=True)
    except OSError as error:
        raise NotWritable(
            f"{archive} cannot be removed",
            details=error.strerror,
            remedy="run cria where the node's directory can be written",
        ) from error
