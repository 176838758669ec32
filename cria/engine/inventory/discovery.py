"""Find the engines of this host, and the engine a user means by a PID or a port."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cria.engine.command_line import ENGINE_MARK, TITLE_PREFIX, locate_script, starts_engine
from cria.errors import AmbiguousTarget, NoSuchProcess, NotAnEngine
from cria.system import sock_diag
from cria.system.descriptors import descriptors
from cria.system.procfs import PROC, Stat, command, environment, pids, stat, tree
from cria.system.sockets import LISTEN, sockets


def is_engine_root(pid: int, proc: Path = PROC) -> bool:
    """Say whether `pid` is the root of an engine."""
    try:
        return find_root(pid, proc) == pid
    except (NoSuchProcess, NotAnEngine):
        return False


def find_root(pid: int, proc: Path = PROC) -> int:
    """Climb from any process of an engine to its root.

    Raises NoSuchProcess, and NotAnEngine with what the process is instead.
    """
    return _Host(proc).root_of(pid)


def find_engines(proc: Path = PROC) -> tuple[int, ...]:
    """Return the root of every engine on this host, ascending."""
    return _Host(proc).roots()


def find_engine(target: int | None = None, port: int | None = None, proc: Path = PROC) -> int:
    """Return the root of the engine that is meant by a PID, by a port, or by naming nothing.

    Raises NoSuchProcess, NotAnEngine or AmbiguousTarget, each with what was found instead.
    """
    if target is not None:
        return find_root(target, proc)
    roots = find_engines(proc)
    if port is not None:
        return _by_port(port, roots, proc)
    if len(roots) == 1:
        return roots[0]
    if not roots:
        raise AmbiguousTarget(
            "no engine runs on this host",
            details="no process is `vllm serve` or `python -m vllm...`, none is titled VLLM::*",
            remedy="cria run -- vllm serve MODEL",
        )
    raise AmbiguousTarget(
        f"{len(roots)} engines run on this host",
        details=_lines(roots, proc),
        remedy=f"name one of them, as in: {roots[0]}",
    )


def describe(pid: int, proc: Path = PROC) -> str:
    """Return one line about a process: its name, what it runs and whose it is.

    Of the arguments only the script or module is told: others may be secrets.
    """
    known = stat(pid, proc)
    if known is None:
        return f"{pid} has ended"
    return f"{pid} is {_told(known.name, command(pid, proc))}, owned by {_owner(pid, proc)}"


def listening_ports(root: int, proc: Path = PROC) -> frozenset[int]:
    """Return the TCP ports on which the engine under `root` listens."""
    processes = tree(root, proc)
    held = [each for process in processes for each in descriptors(process.pid, proc)]
    found = sockets(processes, held, proc).inet
    return frozenset(s.local.port for s in found if s.state == "LISTEN")


class _Host:
    """One look at every process of the host, so that a climb costs no second scan."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        known = (stat(pid, proc) for pid in pids(proc))
        self.stats: dict[int, Stat] = {each.pid: each for each in known if each is not None}
        self.titled = {
            pid for pid, each in self.stats.items() if each.name.startswith(TITLE_PREFIX)
        }
        self.parents_of_titled = {
            self.stats[pid].parent for pid in self.titled if self._same_program(pid)
        } - self.titled

    def roots(self) -> tuple[int, ...]:
        candidates = [pid for pid in self.stats if self._is_root(pid) or pid in self.titled]
        return tuple(sorted({self.root_of(pid) for pid in candidates}))

    def root_of(self, pid: int) -> int:
        if pid not in self.stats:
            raise NoSuchProcess(f"process {pid} does not exist")
        line = self._ancestors(pid)
        roots = [each for each in line if self._is_root(each)]
        # Workers whose root has ended have been given to init: they still are an engine.
        orphans = [each for each in line if each in self.titled]
        if not roots and not orphans:
            raise NotAnEngine(
                f"process {pid} does not belong to a vLLM engine", details=describe(pid, self.proc)
            )
        return (roots or orphans)[-1]

    def _is_root(self, pid: int) -> bool:
        if pid in self.titled or self.stats[pid].state == "Z":
            return False
        return pid in self.parents_of_titled or starts_engine(command(pid, self.proc))

    def _ancestors(self, pid: int) -> list[int]:
        line = [pid]
        while (parent := self.stats[line[-1]].parent) in self.stats and parent not in line:
            line.append(parent)
        return line

    def _same_program(self, pid: int) -> bool:
        """Say whether the parent runs the same interpreter: init adopts what it did not start."""
        program = _program(pid, self.proc)
        return program is not None and program == _program(self.stats[pid].parent, self.proc)


def started_by_cria(root: int, proc: Path = PROC) -> bool:
    """Say whether `cria run` started this engine."""
    return environment(root, proc).get(ENGINE_MARK) == "1"


def _by_port(port: int, roots: tuple[int, ...], proc: Path) -> int:
    fitting = [root for root in roots if port in listening_ports(root, proc)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AmbiguousTarget(
            f"{len(fitting)} engines listen on port {port}",
            details=_lines(fitting, proc),
        )
    others = _listeners(port, proc)
    if others:
        raise NotAnEngine(
            f"what listens on port {port} is not a vLLM engine",
            details=_lines(others, proc),
        )
    raise AmbiguousTarget(
        f"no engine listens on port {port}",
        details=_lines(roots, proc) or "no engine runs on this host",
    )


def _listeners(port: int, proc: Path) -> tuple[int, ...]:
    """Return the processes that listen on `port` in cria's own network namespace."""
    rows = [
        row
        for family in (socket.AF_INET, socket.AF_INET6)
        for row in sock_diag.inet_rows(family, socket.IPPROTO_TCP)
    ]
    inodes = {row.inode for row in rows if row.state == LISTEN and row.source_port == port}
    return tuple(pid for pid in pids(proc) if inodes & _socket_inodes(pid, proc)) if inodes else ()


def _socket_inodes(pid: int, proc: Path) -> set[int]:
    try:
        return {each.inode for each in descriptors(pid, proc) if each.kind == "socket"}
    except PermissionError:
        return set()


def _program(pid: int, proc: Path) -> str | None:
    try:
        return os.readlink(f"{proc}/{pid}/exe")  # noqa: PTH115
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def _owner(pid: int, proc: Path) -> str:
    try:
        uid = os.stat(f"{proc}/{pid}").st_uid  # noqa: PTH116
    except FileNotFoundError:
        return "nobody any more"
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _told(name: str, argv: tuple[str, ...]) -> str:
    start, module = locate_script(argv)
    if module is not None:
        return f"{name} -m {module}"
    if PurePosixPath(argv[0] if argv else name).name.startswith("python") and start < len(argv):
        return f"{name} {argv[start]}"
    return name


def _lines(found: Iterable[int], proc: Path) -> str:
    return "\n".join(describe(pid, proc) for pid in found)
