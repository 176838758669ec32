"""One operation at a time on an engine."""

from __future__ import annotations

import fcntl
import os

from cria.errors import EngineBusy


def lock_engine(root: int) -> int:
    """Lock the engine's own /proc directory: gone with the holder, and no file is left.

    Returns the descriptor that holds the lock until it is closed. Raises EngineBusy.
    """
    held = os.open(f"/proc/{root}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise EngineBusy(f"engine {root} is being dumped already") from error
    return held
