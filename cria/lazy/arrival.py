"""Does memory of an engine still arrive? Its guardian traces it until then, and says so by its name."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from cria.errors import EngineBusy
from cria.process.tree import PROC

NAME = "cria-lazy"


def guardian(pids: Iterable[int], proc: Path = PROC) -> int | None:
    """The PID of the guardian of one of these processes, None when all memory is there."""
    for pid in pids:
        tracer = _word(Path(f"{proc}/{pid}/status"), "TracerPid:")
        if tracer not in ("", "0") and _comm(proc, tracer) == NAME:
            return int(tracer)
    return None


def wait(pids: Iterable[int], seconds: float) -> None:
    """Until all memory of these processes is there. Raises EngineBusy when it takes longer."""
    everyone, deadline = tuple(pids), time.monotonic() + seconds
    while (tracer := guardian(everyone)) is not None:
        if time.monotonic() > deadline:
            raise EngineBusy(
                "memory of the engine still arrives",
                details=f"PID {tracer} gives it what its lazy restore left out",
                remedy="try again when it is done",
                docs="docs/how-to/lazy.md",
            )
        time.sleep(0.01)


def _word(status: Path, name: str) -> str:
    try:
        lines = status.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split()[1] for line in lines if line.startswith(name)), "")


def _comm(proc: Path, pid: str) -> str:
    try:
        return Path(f"{proc}/{pid}/comm").read_text().strip()
    except OSError:
        return ""
