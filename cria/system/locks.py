"""Locks that end with their holder: on an engine, and on what the whole host has only once."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from pathlib import Path
from types import TracebackType

from cria.errors import EngineBusy, NotWritable

_RETRY_SECONDS = 0.01


def lock_engine(root: int) -> int:
    """Lock the engine whose root process is `root`, and return the descriptor that holds the lock.

    It is a flock on the engine's own /proc directory: it ends with its holder, and no file is left
    behind. Raises EngineBusy.
    """
    held = os.open(f"/proc/{root}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise EngineBusy(f"engine {root} is being dumped already") from error
    return held


class HostLock:
    """A lock that one process of this host holds, until it releases the lock or ends.

    `waited` says whether another process held it first.
    """

    def __init__(self, name: str, wait_seconds: float, directory: Path | None = None) -> None:
        """Take the lock. Raises EngineBusy where another process still holds it after `wait_seconds`."""
        self.waited = False
        path = _private(directory or _directory()) / f"{name}.lock"
        self._descriptor: int | None = self._lock(path, time.monotonic() + wait_seconds)

    @property
    def held(self) -> bool:
        """Whether the lock is not released yet."""
        return self._descriptor is not None

    def release(self) -> None:
        """Let others take the lock. A second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _lock(self, path: Path, deadline: float) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise EngineBusy(
                        "another dump or restore on this host does not come to its end",
                        remedy=f"see which process holds {path}: fuser {path}",
                    ) from error
                self.waited = True
                time.sleep(_RETRY_SECONDS)
            else:
                return descriptor


def _directory() -> Path:
    if os.geteuid() == 0:
        return Path("/run/cria")
    return Path(tempfile.gettempdir()) / f"cria-{os.geteuid()}"


def _private(directory: Path) -> Path:
    """Make the directory of the locks. Raises NotWritable where it is somebody else's."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise NotWritable(
            f"{directory} is not a directory of this user",
            details="cria keeps its locks there",
            remedy=f"ls -ld {directory}",
        )
    return directory
