"""What of an engine's memory its clones share, as a caller is told."""

from __future__ import annotations

import errno
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
from cria.system.files import MEMORY_FILE_SYSTEMS
from cria.system.procfs import PROC, pids


class SharedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """What of the memory of one process, by its PID in the checkpoint, is shared, and what is copied."""

    pid: int
    shared_bytes: int
    copied_bytes: int
    why_not: str | None = None


class SharedMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What clones share: `place` is a directory, `made` whether it was made just now."""

    place: str
    made: bool
    shared_bytes: int
    copied_bytes: int
    processes: tuple[SharedProcess, ...]

    @property
    def summary(self) -> str:
        """In words: how much is shared, how much copied, and what stands against it where it does."""
        told = f"shared {self.shared_bytes >> 20} MiB, copied {self.copied_bytes >> 20} MiB"
        against = (f"; PID {p.pid} shares none: {p.why_not}" for p in self.processes if p.why_not)
        return "".join((told, *against))


LOCK = "lock"
DESCRIPTION = "shared.json"
PARTIAL = ".partial"
_MADE = re.compile(rf"([0-9a-f]{{32}})({PARTIAL})?")
_FILE = re.compile(r"/([0-9a-f]{32})/\d+\.mem( \(deleted\))?$")
# bford.info/cachedir: backup programs leave such a directory out. Its files look huge and can be made again.
_TAG_NAME = "CACHEDIR.TAG"
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by cria restore --share-memory\n"


def default_directory(checkpoint: Path) -> Path:
    """The directory for a checkpoint where none was named."""
    return checkpoint.parent / f".{checkpoint.name}.shared"


def is_shared_file(path: str) -> bool:
    """Whether `path`, as in /proc/PID/maps or an image, names a file that was made for sharing."""
    return _FILE.search(path) is not None


def prepare(place: Path) -> None:
    """Make `place` where it is missing. Raises NotWritable, or CannotShare where it is not private."""
    if any(root == place or root in place.parents for root in MEMORY_FILE_SYSTEMS):
        raise _cannot(place, "clones do not see it: they have a /dev/shm of their own")
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.lstat()
    except OSError as error:
        raise NotWritable(
            f"{place} cannot hold memory that clones share",
            details=f"{error.strerror}: {error.filename}",
            remedy="name a directory that can: --share-in DIR",
        ) from error
    why = next(_why_not(place, found), None)
    if why is not None:
        raise _cannot(place, why)
    with suppress(FileExistsError):
        (place / _TAG_NAME).write_text(_TAG)


def _cannot(place: Path, why: str) -> CannotShare:
    remedy = "name another directory: --share-in DIR"
    return CannotShare(f"{place} cannot hold memory that clones share", details=why, remedy=remedy)


def _why_not(place: Path, found: os.stat_result) -> Iterator[str]:
    if not stat.S_ISDIR(found.st_mode):
        yield "it is not a directory"
    elif found.st_uid != os.geteuid() or found.st_mode & 0o077:
        yield f"others may reach it: owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}"
    elif os.statvfs(place).f_flag & os.ST_NOEXEC:
        yield "its file system is mounted noexec, and memory may become code later"


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Wait until no other cria makes or removes something in `place`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(place / LOCK, flags, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def keys_in_use(proc: Path = PROC) -> dict[str, int]:
    """The keys of which files are mapped now, each with a process that has one.

    By name: in a mount namespace of its own a clone has the file under another device and inode.
    """
    found: dict[str, int] = {}
    for pid in pids(proc):
        try:
            maps = (proc / str(pid) / "maps").read_text(errors="replace")
        except OSError:  # it has just ended
            continue
        for line in maps.splitlines():
            if ".mem" in line and (match := _FILE.search(line)):
                found.setdefault(match[1], pid)
    return found


def remove_unused(place: Path, key: str) -> None:
    """Remove from `place` what was made for checkpoints that had its name before, and nobody uses."""
    living = keys_in_use()
    for name, entry in entries(place):
        if name not in living and name != key:
            shutil.rmtree(entry, ignore_errors=True)


def entries(place: Path) -> list[tuple[str, Path]]:
    """What was made here, each with its key. Whoever names a directory may have other things in it."""
    found = []
    for entry in place.iterdir():
        match = _MADE.fullmatch(entry.name)
        if match is None or entry.is_symlink() or not entry.is_dir():
            continue
        if match[2] or (entry / DESCRIPTION).is_file():
            found.append((match[1], entry))
    return found


def remove(place: Path) -> int:
    """Remove all that was made in `place`, which nobody may use; returns the bytes that were freed.

    The directory too, where nothing else is in it.
    """
    if not place.is_dir() or not entries(place):
        return 0
    with locked(place):
        living, made = keys_in_use(), entries(place)
        for name, entry in made:
            if (pid := living.get(name)) is not None:
                raise PathTaken(
                    f"{entry} is in use by process {pid}",
                    details="the engine would run on without it, but could not be dumped any more",
                    remedy=f"end that engine: cria stop {pid}",
                )
        freed = 0
        for _, entry in made:
            freed += sum(p.lstat().st_blocks * 512 for p in entry.rglob("*") if p.is_file())
            shutil.rmtree(entry)
        if {entry.name for entry in place.iterdir()} <= {LOCK, _TAG_NAME}:
            shutil.rmtree(place)
    return freed


def largest_growth() -> int:
    """How far a mapping may grow at most here: more than all memory and swap nobody gets (proc(5))."""
    lines = (PROC / "meminfo").read_text().splitlines()
    known = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return known["MemTotal"] + known["SwapTotal"]


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
