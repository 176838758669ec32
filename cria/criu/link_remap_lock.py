"""Serialize the use of `link_remap.N`, the hard links by which CRIU keeps files without a name."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path

from cria.errors import EngineBusy

_RETRY_SECONDS = 0.01


class LinkRemapLock:
    """A host-wide lock on the names `link_remap.N`, held until it is released or this process ends.

    CRIU links the file in the directory where it lay, mostly /dev/shm, and N is the file's ID in the dump,
    which counts up from the start in each dump (create_link_remap in criu/files-reg.c). Two dumps or
    restores at the same time would therefore use one name for different files. CRIU removes the links by
    name after the post-dump notification where the engine runs on (delete_link_remaps), and after the
    post-restore notification (try_clean_remaps), so the lock is held until CRIU has ended: only while it
    is held does a link surely belong to its holder.

    `waited` says whether another process held the lock first.
    """

    def __init__(self, wait_seconds: float, directory: Path | None = None) -> None:
        """Take the lock. Raises EngineBusy when another process still holds it after `wait_seconds`."""
        self.waited = False
        self._descriptor = self._lock(directory or _directory(), time.monotonic() + wait_seconds)

    @property
    def held(self) -> bool:
        """Whether the lock is not released yet."""
        return self._descriptor is not None

    def release(self) -> None:
        """Let other dumps and restores go on. A second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, directory: Path, deadline: float) -> int | None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / "link-remaps.lock"
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
