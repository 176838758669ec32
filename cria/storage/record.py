"""Files that an engine can find again are not carried: their size and a sampled digest are recorded."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cria.images.files import RegularFile
from cria.manifest import RecordedFile
from cria.storage import digests

_NOT_FILES = ("/proc/", "/sys/", "/dev/")


def wanted(opened: Iterable[RegularFile], remade: Set[int], carried: Set[str]) -> set[str]:
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


def record(paths: Iterable[str], root: Path = Path("/")) -> tuple[RecordedFile, ...]:
    """What is needed to know the files at `paths` below `root` again; those that are gone are left out."""

    def of(path: str) -> RecordedFile | None:
        there = root / path.lstrip("/")
        try:
            size = there.stat().st_size
            return RecordedFile(path=path, size_bytes=size, digest=digests.sampled(there))
        except OSError:
            return None

    with ThreadPoolExecutor(max_workers=4) as pool:
        return tuple(file for file in pool.map(of, sorted(paths)) if file is not None)


def differences(
    recorded: Iterable[RecordedFile], root: Path = Path("/")
) -> Iterator[tuple[RecordedFile, str, str]]:
    """The files that are not as they were: each with what is wrong and what is here."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        compared = pool.map(lambda file: (file, _difference(file, root)), recorded)
        yield from ((file, *found) for file, found in compared if found is not None)


def _difference(file: RecordedFile, root: Path) -> tuple[str, str] | None:
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
