"""Files that an engine can find again are not carried: their size and a sampled digest are recorded."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from cria.criu.images.files import RegularFile
from cria.model.manifest import Fingerprint
from cria.system import digests

SETTLED_NS = 2_000_000_000
_NOT_FILES = ("/proc/", "/sys/", "/dev/")


def needed(opened: Iterable[RegularFile], remade: Set[int], carried: Set[str]) -> set[str]:
    """Of the files that are open or mapped those that are only read: programs, libraries, data.

    `remade` are the file IDs that CRIU makes again itself.
    """
    return {
        file.path
        for file in opened
        if stat.S_ISREG(file.mode)
        and file.flags & os.O_ACCMODE == os.O_RDONLY
        and file.file_id not in remade
        and file.path not in carried
        and not file.path.startswith(_NOT_FILES)
    }


def take(paths: Iterable[str], root: Path = Path("/")) -> tuple[Fingerprint, ...]:
    """What is needed to know the files at `paths` below `root` again; those that are gone are left out."""

    def of(path: str) -> Fingerprint | None:
        there = root / path.lstrip("/")
        try:
            # Before the samples are read: what is written meanwhile shows later.
            status = there.stat()
            digest = digests.sampled(there)
            stamp = _stamp(status) if _is_settled(status) else ""
            return Fingerprint(path=path, size_bytes=status.st_size, digest=digest, stamp=stamp)
        except OSError:
            return None

    return tuple(file for file in digests.at_once(of, sorted(paths)) if file is not None)


def differences(
    recorded: Iterable[Fingerprint], root: Path = Path("/")
) -> Iterator[tuple[Fingerprint, str, str]]:
    """The files that are not as they were: each with what is wrong and what is here.

    A file with the stamp of the dump is the same file and was not written to: it is not read.
    """
    unsure = [file for file in recorded if not _is_untouched(file, root)]
    compared = digests.at_once(lambda file: (file, _difference(file, root)), unsure)
    yield from ((file, *difference) for file, difference in compared if difference is not None)


def _is_untouched(file: Fingerprint, root: Path) -> bool:
    try:
        return file.stamp == _stamp((root / file.path.lstrip("/")).stat())
    except OSError:
        return False


def _is_settled(status: os.stat_result) -> bool:
    """Whether another change would have another time: clocks of file systems tick slowly."""
    return time.time_ns() - status.st_ctime_ns > SETTLED_NS


def _stamp(status: os.stat_result) -> str:
    """Which file it is and when it last changed: nobody can set the time of the last change (inode(7), ctime)."""
    identity = (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    return ":".join(map(str, identity))


def _difference(file: Fingerprint, root: Path) -> tuple[str, str] | None:
    there = root / file.path.lstrip("/")
    try:
        size = there.stat().st_size
        if size != file.size_bytes:
            return "has another size", f"{size} bytes"
        digest = digests.sampled(there)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing", "nothing"
    except OSError as error:
        return "cannot be read", str(error.strerror)
    return None if digest == file.digest else ("has other content", f"digest {digest[:16]}")
