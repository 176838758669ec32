"""A fact that threads and processes wait for together with file descriptors."""

from __future__ import annotations

import os


class Flag:
    """Becomes true once; `descriptor` is readable from then on, also in children that were forked before."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        os.eventfd_write(self.descriptor, 1)
