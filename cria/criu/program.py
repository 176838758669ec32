"""Find the CRIU program and learn its version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cria.errors import CriuMissing, CriuUnsuitable

OLDEST = (4, 1)


def find() -> Path:
    """The CRIU to use: $CRIA_CRIU, then one beside this Python, then the one on PATH or in sbin.

    Raises CriuMissing, naming every place that was looked at.
    """
    named = os.environ.get("CRIA_CRIU")
    if named:
        if not os.access(named, os.X_OK):
            raise CriuMissing(f"CRIA_CRIU names {named}, which is not a program")
        return Path(named).resolve()
    beside = Path(sys.executable).parent / "criu"
    if os.access(beside, os.X_OK):
        return beside.resolve()
    on_path = shutil.which("criu", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if on_path is None:
        raise CriuMissing(
            "no CRIU program on this host",
            details=f"looked at $CRIA_CRIU, {beside}, PATH, /usr/sbin, /usr/local/sbin",
        )
    return Path(on_path).resolve()


class Asked:
    """A CRIU that was asked for its version; it answers while its asker does something else."""

    def __init__(self, criu: Path) -> None:
        self._criu = criu
        try:
            self._process = subprocess.Popen(
                [criu, "--version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except OSError as error:
            raise CriuUnsuitable(f"{criu} does not start", details=str(error)) from error

    def version(self) -> tuple[int, ...]:
        """The version as numbers, for example (4, 2, 1). Raises CriuUnsuitable if it does not start."""
        with self._process as process:
            try:
                answer, _ = process.communicate(timeout=20)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise CriuUnsuitable(f"{self._criu} does not start", details=str(error)) from error
        if process.returncode != 0:
            details = f"status {process.returncode}: {answer.strip()}"
            raise CriuUnsuitable(f"{self._criu} does not start", details=details)
        match = re.search(r"Version:\s*(\d+(?:\.\d+)*)", answer)
        if match is None:
            raise CriuUnsuitable(f"{self._criu} does not say its version", details=answer.strip())
        return tuple(int(part) for part in match.group(1).split("."))

    def require(self) -> tuple[int, ...]:
        """The version of a CRIU that is new enough. Raises CriuUnsuitable."""
        found = self.version()
        if found < OLDEST:
            raise CriuUnsuitable(
                f"CRIU {'.'.join(map(str, found))} is too old",
                details=f"{self._criu}; kernels since 6.13 need CRIU 4.1 (the vvar mapping was split), "
                f"this one is {os.uname().release}",
            )
        return found


def version(criu: Path) -> tuple[int, ...]:
    """What `Asked(criu).version()` says, waited for."""
    return Asked(criu).version()


def require(criu: Path) -> tuple[int, ...]:
    """What `Asked(criu).require()` says, waited for."""
    return Asked(criu).require()
