"""Carry what CRIU's images do not hold: shared memory, CRIU's own link remaps, stores, temporary files.

Shared memory that is a file on /dev/shm is dumped by name only, and `link_remap.N` files are used up
by the first restore. These and the files that only the engine knows of are copied into the
checkpoint while it is frozen, and put back before each restore.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from cria.errors import CheckpointDamaged, PathTaken
from cria.model.manifest import SavedFile
from cria.system import digests, files
from cria.system.files import MEMORY_FILE_SYSTEMS

LINK_REMAP = "link_remap."


def needed(paths: Iterable[str]) -> list[Path]:
    """Those of the engine's open or mapped files that have to be carried."""
    below = tuple(f"{root}/" for root in MEMORY_FILE_SYSTEMS)
    return sorted(
        Path(path) for path in set(paths) if path.startswith(below) or is_link_remap(path)
    )


def save(
    paths: Iterable[Path],
    into: Path,
    root: Path = Path("/"),
    *,
    temporary: Collection[Path] = (),
) -> tuple[SavedFile, ...]:
    """Copy each file below `root` into the directory `into`, while nothing can write to them.

    Those of them that are `temporary` will not be owned.

    A file with several names is stored once: glibc's semaphores are linked under a second name, and
    what CRIU remaps is often a name of something else here.
    """
    stored: dict[tuple[int, int], SavedFile] = {}
    for path in paths:
        there = root / path.relative_to("/")
        status = there.lstat()
        if (status.st_dev, status.st_ino) not in stored:
            kept = _save(there, str(path), into / f"{len(stored):04}", path not in temporary)
            stored[status.st_dev, status.st_ino] = kept
    return tuple(stored.values())


def _save(there: Path, path: str, stored: Path, owned: bool) -> SavedFile:
    source = os.open(there, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(source)
        target = os.open(stored, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copied = files.copy_sparse(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return SavedFile(
        path=path,
        stored_as=stored.name,
        size_bytes=status.st_size,
        stored_bytes=copied,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        names=_other_names(there, Path(path), status) if owned and status.st_nlink > 1 else (),
        owned=owned,
    )


def _other_names(there: Path, path: Path, status: os.stat_result) -> tuple[str, ...]:
    with os.scandir(there.parent) as entries:
        same = sorted(e.name for e in entries if e.inode() == status.st_ino)
    return tuple(str(path.with_name(name)) for name in same if name != path.name)


def check_free(carried: Iterable[SavedFile], stored_in: Path) -> None:
    """Raises PathTaken when a living process uses one of the paths that would be replaced.

    Likewise when a temporary file is there and is not the one in the directory `stored_in`.
    """
    carried = tuple(carried)
    for file in carried:
        if not file.owned and os.path.lexists(file.path) and not is_there(file, stored_in):
            raise PathTaken(
                f"{file.path} is there and is not the file of the dump",
                remedy=f"remove it, if nobody needs it: rm {file.path}",
            )
    present = {name for f in carried if f.owned for name in f.every_name if os.path.lexists(name)}
    if not present:
        return
    for pid, path in _mapped_paths():
        if path in present:
            raise PathTaken(
                f"{path} is in use by process {pid}",
                details=_command(pid),
                remedy=f"end that process, or the engine it belongs to: cria stop {pid}",
            )


def is_there(file: SavedFile, stored_in: Path) -> bool:
    """Whether the file is in its place as it was at the dump."""
    path = Path(file.path)
    try:
        same_size = path.lstat().st_size == file.size_bytes
        return same_size and digests.whole(path) == digests.whole(stored_in / file.stored_as)
    except OSError:
        return False


def missing(carried: Iterable[SavedFile]) -> tuple[SavedFile, ...]:
    """Those that have to be put back on the host: all but temporary files that are there."""
    return tuple(file for file in carried if file.owned or not os.path.lexists(file.path))


def put_back(carried: Iterable[SavedFile], from_: Path, root: Path = Path("/")) -> int:
    """Recreate each file where the engine expects it below `root`, replacing leftovers.

    Returns bytes copied.
    """
    return sum(_put_back(file, from_ / file.stored_as, root) for file in carried)


def _put_back(file: SavedFile, stored: Path, root: Path) -> int:
    """Written under a fresh name and renamed: nobody ever opens half a file."""
    path, *others = (root / name.lstrip("/") for name in file.every_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    try:
        source = os.open(stored, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CheckpointDamaged(f"{stored} is missing from the checkpoint") from error
    try:
        target = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copied = files.copy_sparse(source, target)
            os.fchown(target, file.uid, file.gid)
            os.fchmod(target, file.mode)
        finally:
            os.close(target)
        for other in others:
            other.unlink(missing_ok=True)
            os.link(fresh, other)
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
        os.close(source)
    return copied


def remove(carried: Iterable[SavedFile]) -> None:
    """Take away what an ended engine left behind of these files; link remaps may be another's by now."""
    for name in names(carried):
        Path(name).unlink(missing_ok=True)


def remove_link_remaps(carried: Iterable[SavedFile], root: Path = Path("/")) -> None:
    """Free the names of CRIU's link remaps for others on this host, while it is one's turn."""
    for name in (name for file in carried for name in file.every_name):
        if is_link_remap(name):
            (root / name.lstrip("/")).unlink(missing_ok=True)


def has_link_remaps(carried: Iterable[SavedFile]) -> bool:
    return any(is_link_remap(name) for file in carried for name in file.every_name)


def names(carried: Iterable[SavedFile]) -> list[str]:
    """The paths of these files, but for link remaps."""
    every = (name for file in carried for name in file.every_name)
    return [name for name in every if not is_link_remap(name)]


def is_link_remap(path: str) -> bool:
    return path.rpartition("/")[2].startswith(LINK_REMAP)


def _mapped_paths() -> Iterable[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            maps = (entry / "maps").read_text()
        except OSError:  # it ended, or it is not ours to read
            continue
        for line in maps.splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6:
                yield int(entry.name), fields[5]


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return "it has just ended"
