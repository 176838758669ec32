"""The processes of a tree, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cria.errors import NoSuchProcess
from cria.model.inventory import Memory, Process

PROC = Path("/proc")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


class Stat(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of /proc/PID/stat that cria uses; `start_ticks` counts from boot (proc(5))."""

    pid: int
    name: str
    state: str
    parent: int
    session: int
    threads: int
    start_ticks: int


def tree(root_pid: int, proc: Path = PROC) -> tuple[Process, ...]:
    """Return the process `root_pid` and all that descend from it, parents before children.

    Raises NoSuchProcess when the root is not there. Processes that end meanwhile are left out.
    """
    children = _children(proc)
    boot = _boot_time(proc)
    root = _process(root_pid, proc, boot)
    if root is None:
        raise NoSuchProcess(f"process {root_pid} does not exist")
    processes = [root]
    for parent in processes:
        below = (_process(pid, proc, boot) for pid in children.get(parent.pid, ()))
        processes.extend(process for process in below if process is not None)
    return tuple(processes)


def pids(proc: Path = PROC) -> tuple[int, ...]:
    """Return every process ID in `proc`, ascending."""
    return tuple(sorted(int(name) for name in os.listdir(proc) if name.isdecimal()))  # noqa: PTH208


def stat(pid: int, proc: Path = PROC) -> Stat | None:
    """Return what /proc/PID/stat says, or None when there is no such process."""
    try:
        text = Path(f"{proc}/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold blanks and brackets, so the fields are counted from its last bracket.
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Stat(
        pid=pid,
        name=head.partition("(")[2],
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
    )


def tracer(pid: int, proc: Path = PROC) -> int:
    """Return the PID of the process that traces the process or thread `pid`; 0 where none does."""
    try:
        return int(_status(pid, proc).get("TracerPid", "0"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def command(pid: int, proc: Path = PROC) -> tuple[str, ...]:
    """Return the arguments of a process; empty for a kernel thread, a zombie, or one that ended."""
    try:
        raw = Path(f"{proc}/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    # A title written over the arguments leaves a tail of empty strings.
    argv = raw.rstrip(b"\0 ")
    return tuple(part.decode(errors="replace") for part in argv.split(b"\0")) if argv else ()


def environment(pid: int, proc: Path = PROC) -> dict[str, str]:
    """Return the environment a process was started with; empty where it is unreadable.

    Processes with a title of their own (setproctitle) have overwritten it.
    """
    try:
        raw = Path(f"{proc}/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    pairs = (part.decode(errors="replace").partition("=") for part in raw.split(b"\0"))
    return {name: value for name, equals, value in pairs if equals}


def thread_names(pid: int, proc: Path = PROC) -> tuple[str, ...]:
    """Return the name of every thread of a process, sorted, with repetitions."""
    names = []
    try:
        threads = os.listdir(f"{proc}/{pid}/task")  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return ()
    for thread in threads:
        try:
            names.append(Path(f"{proc}/{pid}/task/{thread}/comm").read_text().rstrip("\n"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return tuple(sorted(names))


def _children(proc: Path) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for pid in pids(proc):
        status = stat(pid, proc)
        if status is not None:
            children.setdefault(status.parent, []).append(pid)
    return children


def _process(pid: int, proc: Path, boot: float) -> Process | None:
    process = stat(pid, proc)
    if process is None:
        return None
    try:
        status = _status(pid, proc)
        cgroup = _cgroup(pid, proc)
        namespaces = _namespaces(pid, proc)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(
        pid=pid,
        parent=process.parent,
        session=process.session,
        uid=int(status["Uid"].split()[0]),
        started=boot + process.start_ticks / os.sysconf("SC_CLK_TCK"),
        command=command(pid, proc),
        name=process.name,
        threads=process.threads,
        namespaces=namespaces,
        state=process.state,
        cgroup=cgroup,
        memory=_memory(status),
    )


def _status(pid: int, proc: Path) -> dict[str, str]:
    text = Path(f"{proc}/{pid}/status").read_text(errors="replace")
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _memory(status: dict[str, str]) -> Memory:
    def read(name: str) -> int:
        return int(status.get(name, "0 kB").split()[0]) * 1024

    return Memory(
        resident=read("VmRSS"),
        anonymous=read("RssAnon"),
        file=read("RssFile"),
        shared=read("RssShmem"),
        swapped=read("VmSwap"),
    )


def _cgroup(pid: int, proc: Path) -> str:
    """Return the cgroup's path in the unified hierarchy, or in the first one there is."""
    lines = Path(f"{proc}/{pid}/cgroup").read_text(errors="replace").splitlines()
    unified = [line for line in lines if line.startswith("0::")]
    return (unified or lines or [""])[0].rpartition(":")[2]


def _namespaces(pid: int, proc: Path) -> dict[str, int]:
    values = {}
    for name in NAMESPACES:
        try:
            target = os.readlink(f"{proc}/{pid}/ns/{name}")  # noqa: PTH115
        except (FileNotFoundError, PermissionError):
            continue
        values[name] = int(target.partition("[")[2].rstrip("]"))
    return values


def _boot_time(proc: Path) -> float:
    for line in Path(f"{proc}/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0
