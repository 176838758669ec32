"""Checks of a checkpoint against this host: would it come back here and now?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cria.checkpoint.handle import Checkpoint
from cria.criu.images.files import UnixSocket
from cria.errors import CheckpointMismatch, PathTaken, PidTaken, PrivilegeMissing
from cria.operations.checks.rows import Row, fail, ok

ZOMBIE_SECONDS = 5.0
# Source: include/linux/threads.h. For a zombie CRIU writes a thread whose number is chance.
PID_MAX_LIMIT = 4 << 20

Check = Callable[[Checkpoint], Iterator[Row]]


def privileges(*_: object) -> Iterator[Row]:
    from cria.system.host import missing_capabilities

    missing = missing_capabilities()
    if missing:
        yield fail(
            "missing capabilities",
            ", ".join(missing),
            PrivilegeMissing.default_remedy,
            PrivilegeMissing,
        )


def pids(checkpoint: Checkpoint, *, wait_seconds: float = ZOMBIE_SECONDS) -> Iterator[Row]:
    """A restore takes the PIDs and TIDs of the dump; a zombie holds its PID until it is reaped."""
    stored = checkpoint.criu_images.processes
    needed = {tid for p in stored for tid in (p.pid, *p.threads) if tid <= PID_MAX_LIMIT}
    highest = int(Path("/proc/sys/kernel/pid_max").read_text())
    if max(needed) >= highest:
        yield fail(
            "PIDs end too early here",
            f"kernel.pid_max is {highest}",
            f"sysctl -w kernel.pid_max={max(needed) + 1}",
            CheckpointMismatch,
            recorded=f"PID {max(needed)}",
        )
    taken: dict[int, list[int]] = {}
    for pid in sorted(wait_for_zombies(needed, wait_seconds)):
        taken.setdefault(_process_of(pid), []).append(pid)
    for owner, held in taken.items():
        more = f", and {len(held) - 1} more that it holds" if len(held) > 1 else ""
        yield fail(
            f"PID {held[0]} is taken",
            f"{describe(held[0])}{more}",
            f"end that process: kill {owner}",
            PidTaken,
            pid=owner,
        )


def pids_now(checkpoint: Checkpoint) -> Iterator[Row]:
    """The same without waiting, and with a word when all is well."""
    taken = list(pids(checkpoint, wait_seconds=0))
    yield from taken or [ok("PIDs", "all free")]


def unix_names(checkpoint: Checkpoint) -> Iterator[Row]:
    """Names that living sockets have: CRIU takes a path over without a word, and a server with it."""
    from cria.network.occupancy import owners_of
    from cria.system.sock_diag import unix_rows

    stored = checkpoint.criu_images.unix_sockets()
    bound = {_shown(s.name): s for s in stored if _binds(s)}
    if not bound:
        return
    living = [row for row in unix_rows() if row.path in bound and row.peer_inode is None]
    owners = owners_of({row.inode for row in living})
    for row in living:
        yield fail(
            f"the unix socket {row.path} is in use",
            f"by {owners.get(row.inode, 'a process that cannot be seen')};"
            " a restore would take it over",
            "end that process, or the engine it belongs to",
            PathTaken,
        )


def _binds(socket: UnixSocket) -> bool:
    """CRIU binds listeners and datagram sockets again; a connection keeps its name in memory only."""
    ours = bool(socket.name) and not socket.deleted and not socket.external
    return ours and (socket.state == "LISTEN" or socket.kind == "dgram")


def _shown(name: bytes) -> str:
    if name.startswith(b"\0"):
        return "@" + name[1:].decode(errors="backslashreplace")
    return name.rstrip(b"\0").decode(errors="surrogateescape")


def wait_for_zombies(needed: set[int], seconds: float = ZOMBIE_SECONDS) -> set[int]:
    """The PIDs of `needed` that are taken, after giving those of dead processes time to be reaped."""
    deadline = time.monotonic() + seconds
    while True:
        taken = {pid for pid in needed if Path(f"/proc/{pid}").exists()}
        if not any(_state(pid) in "ZX" for pid in taken) or time.monotonic() > deadline:
            return taken
        time.sleep(0.02)


def describe(pid: int) -> str:
    """Who holds a PID, in words; values that look like secrets are left out."""
    from cria.redaction import redact_command

    try:
        status = Path(f"/proc/{pid}/status").read_text()
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "its process has just ended"
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    argv = raw.rstrip(b"\0 ").decode(errors="replace").split("\0")
    name = " ".join(redact_command(argv)).strip() or facts.get("Name", "?")
    if _state(pid) in "ZX":
        return f"a zombie ({name}) that its parent {facts.get('PPid')} has not reaped"
    if facts.get("Tgid") != str(pid):
        return f"a thread of process {facts.get('Tgid')} ({name[:120]})"
    return name[:120]


def _process_of(tid: int) -> int:
    try:
        lines = Path(f"/proc/{tid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return tid
    return next((int(line.split()[1]) for line in lines if line.startswith("Tgid")), tid)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "-"
