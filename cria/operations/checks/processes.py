"""Checks of an engine's processes: who traces them, which namespaces and memory they have."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cria.model.inventory import Inventory
from cria.model.units import size
from cria.operations.checks.rows import Row, fail, named, ok, stranger
from cria.system.procfs import PROC

_SYSTEM_V = "/SYSV"


def traced(inventory: Inventory, proc: Path = PROC) -> Iterator[Row]:
    """CRIU seizes every thread with ptrace(2), and a thread has one tracer at most."""
    for process in inventory.processes:
        yield from _traced(inventory, process.pid, process.pid, proc)


def traced_threads(inventory: Inventory, proc: Path = PROC) -> Iterator[Row]:
    """The same for the threads that are not the first of their process."""
    for process in inventory.processes:
        for task in sorted(Path(f"{proc}/{process.pid}/task").iterdir()):
            if int(task.name) != process.pid:
                yield from _traced(inventory, process.pid, int(task.name), proc)


def _traced(inventory: Inventory, pid: int, tid: int, proc: Path) -> Iterator[Row]:
    tracer = int(_status(proc / str(tid)).get("TracerPid", "0"))
    if tracer:
        thread = f" thread {tid}" if tid != pid else ""
        yield fail(
            f"{named(inventory, pid)}{thread} is being traced",
            f"by {stranger(tracer, proc)}; CRIU has to trace it itself",
            f"end the debugger or profiler: kill {tracer}",
            pid=pid,
        )


def dead_leaders(inventory: Inventory) -> Iterator[Row]:
    """A process whose first thread has ended while others live."""
    for process in inventory.processes:
        if process.state == "Z" and process.threads > 1:
            yield fail(
                f"{named(inventory, process.pid)} has lost its first thread",
                f"{process.threads - 1} threads live on; CRIU cannot seize such a process",
                "restart the engine",
                pid=process.pid,
            )


def namespaces(inventory: Inventory) -> Iterator[Row]:
    """CRIU gives one set of namespaces to a whole tree; nested ones fail, some only at the restore."""
    common = inventory.root.namespaces
    for process in inventory.processes[1:]:
        own = [n for n, i in process.namespaces.items() if common.get(n, i) != i]
        if own:
            yield fail(
                f"{named(inventory, process.pid)} has namespaces of its own",
                f"{', '.join(own)}; CRIU restores one set of namespaces for the whole engine",
                "start the engine so that all its processes share their namespaces",
                pid=process.pid,
            )


def system_v_memory(inventory: Inventory, proc: Path = PROC) -> Iterator[Row]:
    """System V shared memory belongs to an IPC namespace, which CRIU dumps only when it is not ours."""
    own = Path(f"{proc}/self/ns/ipc").stat().st_ino
    if inventory.root.namespaces.get("ipc", own) != own or not _segments_in_use(proc):
        return
    for process in inventory.processes:
        if _SYSTEM_V in Path(f"{proc}/{process.pid}/maps").read_text(errors="replace"):
            yield fail(
                f"{named(inventory, process.pid)} maps System V shared memory",
                "CRIU dumps it only together with an IPC namespace",
                "start the engine in an IPC namespace of its own: unshare --ipc CMD...",
                pid=process.pid,
            )


def _segments_in_use(proc: Path) -> bool:
    """Whether anybody has such a segment attached: most hosts spare us reading the maps."""
    try:
        lines = Path(f"{proc}/sysvipc/shm").read_text().splitlines()[1:]
    except OSError:
        return False
    return any(int(line.split()[6]) for line in lines)


def _status(task: Path) -> dict[str, str]:
    try:
        lines = (task / "status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


_PROBE = 64 << 20
_CHUNK = 4 << 20
_AT_MOST_SECONDS = 2.0


def size_and_time(inventory: Inventory, place: Path) -> Iterator[Row]:
    """The size is counted; the time is that of writing it at the rate just measured at `place`."""
    held, zero = inventory.checkpoint_bytes(), inventory.zero_bytes()
    zeros = f", about {size(zero)} of it zeros" if zero is not None else ""
    yield ok("expected size", f"{size(held)} in {len(inventory.processes)} processes{zeros}")
    rate = write_rate(place)
    yield ok(
        "expected time",
        f"about {held / rate:.1f} s to write it: {place} takes {size(int(rate))} in a second just now",
    )


def write_rate(place: Path) -> float:
    """Bytes per second that the file system of `place` takes, as CRIU would write them here.

    Writes at most 64 MiB for at most two seconds to a file without a name. Raises OSError.
    """
    flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
    file = os.open(place, flags, 0o600)
    try:
        with mmap.mmap(-1, _CHUNK) as chunk:
            chunk[:] = os.urandom(4096) * (_CHUNK // 4096)
            return _rate(file, chunk)
    finally:
        os.close(file)


def _rate(file: int, chunk: mmap.mmap) -> float:
    begin = time.monotonic()
    written = 0
    while written < _PROBE and time.monotonic() - begin < _AT_MOST_SECONDS:
        written += os.write(file, chunk)
    return written / (time.monotonic() - begin)
