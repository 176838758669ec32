"""Checks of a checkpoint against this host: would it come back here and now?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from cria.checkpoint import Checkpoint
from cria.doctor.row import Row, fail
from cria.errors import PidTaken, PrivilegeMissing

ZOMBIE_SECONDS = 5.0


def privileges() -> Iterator[Row]:
    from cria.doctor.engine import missing_capabilities

    missing = missing_capabilities()
    if missing:
        yield fail(
            "missing capabilities",
            ", ".join(missing),
            PrivilegeMissing.default_remedy,
            PrivilegeMissing,
        )


def pids(checkpoint: Checkpoint, criu: Path) -> Iterator[Row]:
    """A restore takes the PIDs and TIDs of the dump; a zombie holds its PID until it is reaped."""
    from cria.images.facts import processes

    needed = {tid for p in processes(checkpoint.images, criu) for tid in (p.pid, *p.threads)}
    for pid in sorted(wait_for_zombies(needed)):
        yield fail(f"PID {pid} is taken", describe(pid), _remedy(pid), PidTaken)


def wait_for_zombies(needed: set[int], seconds: float = ZOMBIE_SECONDS) -> set[int]:
    """The PIDs of `needed` that are taken, after giving those of dead processes time to be reaped."""
    deadline = time.monotonic() + seconds
    while True:
        taken = {pid for pid in needed if Path(f"/proc/{pid}").exists()}
        if not any(_state(pid) in "ZX" for pid in taken) or time.monotonic() > deadline:
            return taken
        time.sleep(0.02)


def describe(pid: int) -> str:
    """Who holds a PID, in words."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        command = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return "its process has just ended"
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    name = command.strip() or facts.get("Name", "?")
    if _state(pid) in "ZX":
        return f"a zombie ({name}) that its parent {facts.get('PPid')} has not reaped"
    if facts.get("Tgid") != str(pid):
        return f"a thread of process {facts.get('Tgid')} ({name})"
    return name[:120]


def _remedy(pid: int) -> str:
    return f"end that process: kill {pid}"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "-"
