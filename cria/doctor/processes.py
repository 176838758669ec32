"""Checks of an engine's processes: who traces them, which namespaces and memory they have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cria.doctor.row import Row, fail
from cria.doctor.who import named, stranger
from cria.inventory import Inventory
from cria.process.tree import PROC

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
