"""Find the CRIU program and its version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cria.errors import CriuMissing, CriuUnsuitable

# Kernels since 6.13 split the vvar mapping, which CRIU knows since 4.1 (commit 8ee2eba47, issue 2532).
OLDEST_SUPPORTED = (4, 1)
_SECONDS = 20.0  # for `criu --version`


def find() -> Path:
    """Return the CRIU to use: $CRIA_CRIU, else one beside this Python, else one on PATH or in an sbin.

    Raises CriuMissing, which names every place.
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


class VersionQuery:
    """`criu --version`, started and not waited for.

    CRIU takes 3 ms to answer and protobuf 12 ms to load, so a dump or a restore does both at once.
    """

    def __init__(self, program: Path) -> None:
        """Raises CriuUnsuitable where the program does not start."""
        self._program = program
        try:
            self._process = subprocess.Popen(
                [program, "--version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except OSError as error:
            raise self._unsuitable(str(error)) from error

    def version(self) -> tuple[int, ...]:
        """Wait for the version as numbers, for example (4, 2, 1). Raises CriuUnsuitable."""
        with self._process as process:
            try:
                answer, _ = process.communicate(timeout=_SECONDS)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise self._unsuitable(str(error)) from error
        if process.returncode != 0:
            raise self._unsuitable(f"status {process.returncode}: {answer.strip()}")
        match = re.search(r"Version:\s*(\d+(?:\.\d+)*)", answer)
        if match is None:
            raise CriuUnsuitable(
                f"{self._program} does not say its version", details=answer.strip()
            )
        return tuple(int(part) for part in match.group(1).split("."))

    def require(self) -> tuple[int, ...]:
        """Wait for the version of a CRIU that is new enough. Raises CriuUnsuitable."""
        version = self.version()
        if version < OLDEST_SUPPORTED:
            raise CriuUnsuitable(
                f"CRIU {'.'.join(map(str, version))} is too old",
                details=f"{self._program}; kernels since 6.13 need CRIU 4.1 (the vvar mapping was split), "
                f"this one is {os.uname().release}",
            )
        return version

    def _unsuitable(self, why: str) -> CriuUnsuitable:
        return CriuUnsuitable(f"{self._program} does not start", details=why)


def version(program: Path) -> tuple[int, ...]:
    """Ask a CRIU for its version, and wait for it. Raises CriuUnsuitable."""
    return VersionQuery(program).version()


def require(program: Path) -> tuple[int, ...]:
    """Return the version of a CRIU that is new enough. Raises CriuUnsuitable."""
    return VersionQuery(program).require()
