"""Where the files for shared memory lie: a private directory beside the checkpoint, one per checkpoint in it."""

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

from cria.errors import CannotShare, NotWritable, PathTaken
from cria.process.tree import PROC, pids
from cria.storage.carry import MEMORY_FILE_SYSTEMS

LOCK = "lock"
_KEY = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"/([0-9a-f]{32})/\d+\.mem( \(deleted\))?$")
# bford.info/cachedir: backup programs leave such a directory out. Its files look huge and can be made again.
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by cria restore --share-memory\n"


def beside(checkpoint: Path) -> Path:
    """The directory for a checkpoint where none was named."""
    return checkpoint.parent / f".{checkpoint.name}.shared"


def is_ours(path: str) -> bool:
    """Whether `path`, as in /proc/PID/maps or an image, names a file that was made for sharing."""
    return _FILE.search(path) is not None


def make(place: Path) -> None:
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
        (place / "CACHEDIR.TAG").write_text(_TAG)


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


def used(proc: Path = PROC) -> dict[str, int]:
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


def clear_others(place: Path, key: str) -> None:
    """Remove from `place` what was made for checkpoints that had its name before, and nobody uses."""
    living = used()
    for entry in place.iterdir():
        if entry.name != key and entry.name.partition(".")[0] not in living and _is_made(entry):
            shutil.rmtree(entry, ignore_errors=True)


def _is_made(entry: Path) -> bool:
    return _KEY.match(entry.name) is not None and entry.is_dir() and not entry.is_symlink()


def remove(place: Path) -> int:
    """Remove all that was made in `place`, which nobody may use; returns the bytes that were freed."""
    if not place.is_dir():
        return 0
    with locked(place):
        living = used()
        for entry in place.iterdir():
            if (pid := living.get(entry.name)) is not None:
                raise PathTaken(
                    f"{entry} is in use by process {pid}",
                    details="the engine would run on without it, but could not be dumped any more",
                    remedy=f"end that engine: cria stop {pid}",
                )
        freed = sum(p.lstat().st_blocks * 512 for p in place.rglob("*") if p.is_file())
        shutil.rmtree(place)
    return freed


def room() -> int:
    """How far a mapping may grow at most here: more than all memory and swap nobody gets (proc(5))."""
    lines = (PROC / "meminfo").read_text().splitlines()
    known = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return known["MemTotal"] + known["SwapTotal"]


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
