"""Take turns with `link_remap.N`, the hard links by which CRIU keeps files that have lost their name.

They lie where the file lay, mostly on /dev/shm, and N counts anew in every dump. Two engines dumped or
restored on one host at the same time would use the same name for different files.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path

from cria.errors import EngineBusy


class Turn:
    """It lasts until it is ended, or its holder has. Only meanwhile a link remap is surely one's own.

    `waited` says whether somebody else had it first.
    """

    def __init__(self, seconds: float, place: Path | None = None) -> None:
        """Wait for those who are at it. Raises EngineBusy after so many seconds."""
        self.waited = False
        self._held = self._lock(place or _place(), time.monotonic() + seconds)

    @property
    def lasts(self) -> bool:
        return self._held is not None

    def end(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _lock(self, directory: Path, deadline: float) -> int | None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / "link-remaps.lock"
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    os.close(held)
                    raise EngineBusy(
                        "another dump or restore on this host does not come to its end",
                        remedy=f"see who holds {path}: fuser {path}",
                    ) from error
                self.waited = True
                time.sleep(0.01)
            else:
                return held


def _place() -> Path:
    if os.geteuid() == 0:
        return Path("/run/cria")
    return Path(tempfile.gettempdir()) / f"cria-{os.geteuid()}"
