"""The directory that holds backing stores: who may use it, what is in it, what of it can be removed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from cria.errors import CannotShare, NotWritable, PathTaken
from cria.system import memory
from cria.system.files import MEMORY_FILE_SYSTEMS
from cria.system.procfs import PROC, pids


class SharedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the memory of one process is shared; `pid` is its PID in the checkpoint."""

    pid: int
    shared_bytes: int
    copied_bytes: int
    why_not: str | None = None


class SharedMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What clones share.

    `place` is the directory of the backing store, `made` says whether it was built just now.
    """

    place: str
    made: bool
    shared_bytes: int
    copied_bytes: int
    processes: tuple[SharedProcess, ...]

    @property
    def summary(self) -> str:
        """Say how much is shared, how much is copied, and which processes share nothing."""
        sizes = f"shared {self.shared_bytes >> 20} MiB, copied {self.copied_bytes >> 20} MiB"
        reasons = (f"; PID {p.pid} shares none: {p.why_not}" for p in self.processes if p.why_not)
        return "".join((sizes, *reasons))


DESCRIPTION = "shared.json"
PARTIAL = ".partial"  # suffix of a backing store that is not complete
_LOCK = "lock"
# A backing store is a directory named by its key, a digest of the checkpoint. The names must stay: clones
# that run now are found by the paths that they have mapped.
_STORE = re.compile(rf"([0-9a-f]{{32}})({PARTIAL})?")
_STORE_FILE = re.compile(r"/([0-9a-f]{32})/\d+\.mem( \(deleted\))?$")
# Backup programs leave out a directory with this tag (bford.info/cachedir). Files of a backing store look
# huge and can be built again.
_TAG_NAME = "CACHEDIR.TAG"
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by cria restore --share-memory\n"


def default_directory(checkpoint: Path) -> Path:
    """Return the directory for the backing stores of a checkpoint where the user named none."""
    return checkpoint.parent / f".{checkpoint.name}.shared"


def is_shared_file(path: str) -> bool:
    """Whether `path`, as in /proc/PID/maps or an image, names a file of a backing store."""
    return _STORE_FILE.search(path) is not None


def prepare(directory: Path) -> None:
    """Create `directory` where it is missing, and check it.

    Raises NotWritable, or CannotShare where clones do not see the directory or others can reach it.
    """
    if any(root == directory or root in directory.parents for root in MEMORY_FILE_SYSTEMS):
        raise _unsuitable(directory, "clones do not see it: they have a /dev/shm of their own")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise NotWritable(
            f"{directory} cannot hold memory that clones share",
            details=f"{error.strerror}: {error.filename}",
            remedy="name a directory that can: --share-in DIR",
        ) from error
    reason = _why_unsuitable(directory, status)
    if reason is not None:
        raise _unsuitable(directory, reason)
    with suppress(FileExistsError):
        (directory / _TAG_NAME).write_text(_TAG)


def _unsuitable(directory: Path, reason: str) -> CannotShare:
    return CannotShare(
        f"{directory} cannot hold memory that clones share",
        details=reason,
        remedy="name another directory: --share-in DIR",
    )


def _why_unsuitable(directory: Path, status: os.stat_result) -> str | None:
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a directory"
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        return f"others may reach it: owner {status.st_uid}, mode {mode:o}"
    if os.statvfs(directory).f_flag & os.ST_NOEXEC:
        return "its file system is mounted noexec, and memory may become code later"
    return None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait until no other cria builds or removes a backing store in `directory`, and keep others out."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(directory / _LOCK, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def keys_in_use(proc: Path = PROC) -> dict[str, int]:
    """Return the key of each backing store that is mapped now, with the PID of a process that maps it.

    Files are compared by path: in a mount namespace of its own a clone has the file under another
    device and inode.
    """
    in_use: dict[str, int] = {}
    for pid in pids(proc):
        # A process whose mappings this user may not read is not one of this user's clones.
        with suppress(PermissionError):
            for mapping in memory.mappings(pid, proc):
                if match := _STORE_FILE.search(mapping.path):
                    in_use.setdefault(match[1], pid)
    return in_use


def remove_unused(directory: Path, key: str) -> None:
    """Remove each backing store that no process uses, except the one with this key.

    They are of checkpoints that had this name before.
    """
    in_use = keys_in_use()
    for store_key, store in stores(directory):
        if store_key not in in_use and store_key != key:
            shutil.rmtree(store, ignore_errors=True)


def stores(directory: Path) -> list[tuple[str, Path]]:
    """Return the key and the path of each backing store, complete or not.

    Other things may lie in a directory that a user named: they are left out.
    """
    result = []
    for path in directory.iterdir():
        match = _STORE.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        is_partial = match[2] is not None
        if is_partial or (path / DESCRIPTION).is_file():
            result.append((match[1], path))
    return result


def remove(directory: Path) -> int:
    """Remove all backing stores in `directory`; return the bytes that this frees.

    The directory is removed too where nothing else is in it. Raises PathTaken where a process uses one.
    """
    if not directory.is_dir() or not stores(directory):
        return 0
    with locked(directory):
        in_use, existing = keys_in_use(), stores(directory)
        for key, store in existing:
            if (pid := in_use.get(key)) is not None:
                raise PathTaken(
                    f"{store} is in use by process {pid}",
                    details="the engine would run on without it, but could not be dumped any more",
                    remedy=f"end that engine: cria stop {pid}",
                )
        freed = 0
        for _, store in existing:
            files = (path for path in store.rglob("*") if path.is_file())
            freed += sum(path.lstat().st_blocks * 512 for path in files)
            shutil.rmtree(store)
        if {path.name for path in directory.iterdir()} <= {_LOCK, _TAG_NAME}:
            shutil.rmtree(directory)
    return freed
