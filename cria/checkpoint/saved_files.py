"""Save what CRIU's images do not hold: shared memory, link remaps, torch's stores, temporary files.

CRIU dumps a file on /dev/shm by its name only, and the first restore uses up the files `link_remap.N`.
These, and files that only the engine knows of, are copied into the checkpoint while the engine is
frozen, and put back before each restore.

All paths are the engine's choice, so each is walked by cria.system.paths.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from cria.errors import CheckpointDamaged, DumpFailed, NotWritable, PathTaken
from cria.model.manifest import SavedFile
from cria.system import digests, files
from cria.system.files import MEMORY_FILE_SYSTEMS
from cria.system.paths import Place, place_of
from cria.system.procfs import PROC, command, pids

LINK_REMAP = "link_remap."


class Original(NamedTuple):
    """A saved file and the file that it was copied from: by device and inode."""

    file: SavedFile
    device: int
    inode: int


class Placed(NamedTuple):
    """A name at which a restore has put a file back."""

    path: str
    device: int
    inode: int


def needed(paths: Iterable[str]) -> list[Path]:
    """Return those of the engine's open or mapped files that have to be saved."""
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
    uids: Collection[int] = (0,),
    inodes: Collection[tuple[int, int]] = (),
) -> tuple[Original, ...]:
    """Copy files below `root` into the directory `into`, while nothing can write to them.

    Only files that the engine has open (`inodes`: device and inode) or that belong to one of its `uids`
    are copied: a path that leads to somebody else's file is refused. A file that is `temporary` is not
    owned by the checkpoint. A file with several names is saved once: glibc links each semaphore under a
    second name, and what CRIU remaps is often such a name.

    Raises DumpFailed.
    """
    saved: dict[tuple[int, int], Original] = {}
    for path in paths:
        try:
            with place_of(path, root=root, trusted=uids) as place:
                descriptor, status = place.open_regular()
                try:
                    key = (status.st_dev, status.st_ino)
                    if status.st_uid not in uids and key not in inodes:
                        raise PermissionError(f"it belongs to uid {status.st_uid}")
                    if key not in saved:
                        stored = into / f"{len(saved):04}"
                        owned = path not in temporary
                        file = _save(descriptor, status, place, str(path), stored, owned=owned)
                        saved[key] = Original(file, *key)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise DumpFailed(
                f"{path} could not be saved",
                details=error.strerror or str(error),
                remedy=f"see who changes it: ls -l {path}",
            ) from error
    return tuple(saved.values())


def _save(
    source: int, status: os.stat_result, place: Place, path: str, stored: Path, *, owned: bool
) -> SavedFile:
    target = os.open(stored, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        copied = files.copy_sparse(source, target)
    finally:
        os.close(target)
    # Elsewhere than in memory other names of the file are the user's: `ln log log.1; rm log`.
    in_memory = any(directory in Path(path).parents for directory in MEMORY_FILE_SYSTEMS)
    names = _other_names(place, path, status) if owned and in_memory else ()
    return SavedFile(
        path=path,
        stored_as=stored.name,
        size_bytes=status.st_size,
        stored_bytes=copied,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        names=names,
        owned=owned,
    )


def _other_names(place: Place, path: str, status: os.stat_result) -> tuple[str, ...]:
    if status.st_nlink == 1:
        return ()
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.directory)
    try:
        with os.scandir(descriptor) as entries:
            names = sorted(entry.name for entry in entries if entry.inode() == status.st_ino)
    finally:
        os.close(descriptor)
    return tuple(str(Path(path).with_name(name)) for name in names if name != place.name)


def check_free(saved: Iterable[SavedFile], stored_in: Path) -> None:
    """Check that no living process uses a path that a restore would replace.

    A temporary file that exists must be the one in the directory `stored_in`. Raises PathTaken.
    """
    saved = tuple(saved)
    for file in saved:
        if not file.owned and os.path.lexists(file.path) and not is_in_place(file, stored_in):
            raise PathTaken(
                f"{file.path} exists and is not the file of the dump",
                remedy=f"remove it, if nobody needs it: rm {file.path}",
            )
    present = {name for f in saved if f.owned for name in f.every_name if os.path.lexists(name)}
    if not present:
        return
    for pid, path in _mapped_paths():
        if path in present:
            raise PathTaken(
                f"{path} is in use by process {pid}",
                details=Path(next(iter(command(pid)), "it has just ended")).name,
                remedy=f"end that process, or the engine it belongs to: cria stop {pid}",
            )


def is_in_place(file: SavedFile, stored_in: Path) -> bool:
    """Say whether the file is at its path with the content that it had at the dump."""
    path = Path(file.path)
    try:
        same_size = path.lstat().st_size == file.size_bytes
        return same_size and digests.whole(path) == digests.whole(stored_in / file.stored_as)
    except OSError:
        return False


def missing(saved: Iterable[SavedFile]) -> tuple[SavedFile, ...]:
    """Return what has to be put back on the host: all but temporary files that exist."""
    return tuple(file for file in saved if file.owned or not os.path.lexists(file.path))


def put_back(
    saved: Iterable[SavedFile],
    from_: Path,
    root: Path = Path("/"),
    placed: list[Placed] | None = None,
) -> int:
    """Put each file where the engine expects it below `root`, in the place of what an engine left there.

    `placed` collects the names, also where a later file fails. Returns the bytes copied. Raises
    CheckpointDamaged, and NotWritable where the file's owner could not have put it there.
    """
    return sum(_put_back(file, from_ / file.stored_as, root, placed) for file in saved)


def _put_back(file: SavedFile, stored: Path, root: Path, placed: list[Placed] | None) -> int:
    try:
        source = os.open(stored, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CheckpointDamaged(f"{stored} is missing from the checkpoint") from error
    try:
        owner = (file.uid, file.gid)
        with place_of(file.path, root=root, trusted=(file.uid,), create_for=owner) as place:
            if not place.may_create(file.uid):
                raise PermissionError(f"uid {file.uid} may not write to its directory")
            return _copy(file, source, place, placed)
    except PermissionError as error:
        raise NotWritable(
            f"{file.path} cannot be put back",
            details=error.strerror or str(error),
            remedy=f"see where it leads: namei -l {file.path}",
        ) from error
    finally:
        os.close(source)


def _copy(file: SavedFile, source: int, place: Place, placed: list[Placed] | None) -> int:
    """Write a new file under another name and rename it: nobody ever opens half a file."""
    fresh = Place(place.directory, f"{place.name}.{os.urandom(4).hex()}", place.path)
    target = fresh.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        copied = files.copy_sparse(source, target)
        os.fchown(target, file.uid, file.gid)
        os.fchmod(target, file.mode)
        status = os.fstat(target)
        for path in file.names:  # in the same directory: hard links of a file in memory
            other = Place(place.directory, Path(path).name, path)
            other.unlink()
            os.link(fresh.name, other.name, src_dir_fd=fresh.directory, dst_dir_fd=other.directory)
        os.rename(fresh.name, place.name, src_dir_fd=fresh.directory, dst_dir_fd=place.directory)
        if placed is not None:
            placed += [Placed(name, status.st_dev, status.st_ino) for name in file.every_name]
    finally:
        os.close(target)
        fresh.unlink()
    return copied


def remove_originals(saved: Iterable[Original], uids: Collection[int] = ()) -> None:
    """Remove what an engine that has ended left of these files; CRIU removes link remaps itself."""
    for original in saved:
        if original.file.owned:
            for name in original.file.every_name:
                if not is_link_remap(name):
                    _unlink(Placed(name, original.device, original.inode), Path("/"), uids)


def remove_link_remaps(
    saved: Iterable[Original], root: Path = Path("/"), uids: Collection[int] = ()
) -> None:
    """Remove CRIU's link remaps, so that others can use their names, while the link-remap lock is held."""
    for original in saved:
        for name in original.file.every_name:
            if is_link_remap(name):
                _unlink(Placed(name, original.device, original.inode), root, uids)


def remove_placed(
    placed: Iterable[Placed], *, link_remaps: bool, uids: Collection[int] = ()
) -> None:
    """Remove what a restore has put back, where nobody else has put something in its place since."""
    for name in placed:
        if is_link_remap(name.path) == link_remaps:
            _unlink(name, Path("/"), uids)


def _unlink(name: Placed, root: Path, uids: Collection[int]) -> None:
    try:
        with place_of(name.path, root=root, trusted=uids) as place:
            place.unlink_if(name.device, name.inode)
    except OSError:  # the directory is gone, or a stranger's link leads there: then it is not ours
        return


def has_link_remaps(saved: Iterable[SavedFile]) -> bool:
    return any(is_link_remap(name) for file in saved for name in file.every_name)


def is_link_remap(path: str) -> bool:
    return path.rpartition("/")[2].startswith(LINK_REMAP)


def _mapped_paths(proc: Path = PROC) -> Iterable[tuple[int, str]]:
    for pid in pids(proc):
        try:
            maps = (proc / str(pid) / "maps").read_text(errors="replace")
        except OSError:  # the process has ended, or is not ours to read
            continue
        for line in maps.splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6:
                yield pid, fields[5]
