"""A new file that others see when it is whole, or never; private, for it holds an engine's memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from cria.errors import CheckpointExists
from cria.storage import archive


class StagedFile:
    """`file` is written beside `target` under another name, and `publish` gives it its own."""

    def __init__(self, target: Path) -> None:
        """Raises CheckpointExists, NotWritable or NoSpace."""
        self.target = target
        if os.path.lexists(target):
            raise self._exists()
        self._path = target.with_name(f".{target.name}.{os.urandom(4).hex()}.partial")
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise archive.writing_failed(error, target) from error
        self.file: IO[bytes] = os.fdopen(descriptor, "wb", buffering=0)

    def publish(self) -> None:
        """A link, because a rename would replace what somebody else has put there meanwhile."""
        try:
            os.fsync(self.file.fileno())
            self.file.close()
            os.link(self._path, self.target)
            self._path.unlink()
        except FileExistsError as error:
            raise self._exists() from error
        except OSError as error:
            raise archive.writing_failed(error, self.target) from error

    def discard(self) -> None:
        """Remove what was not published."""
        self.file.close()
        self._path.unlink(missing_ok=True)

    def _exists(self) -> CheckpointExists:
        return CheckpointExists(
            f"{self.target} exists already",
            remedy=f"choose another name, or remove it: rm {self.target}",
        )
