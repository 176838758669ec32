"""Find the engines of this host, and the engine that a user means by a PID or a port."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cria.engine.command_line import ENGINE_MARK, TITLE_PREFIX, locate_script, starts_engine
from cria.errors import AmbiguousTarget, NoSuchProcess, NotAnEngine
from cria.model.socket import LISTEN
from cria.system import sock_diag
from cria.system.descriptors import descriptors
from cria.system.procfs import PROC, Stat, command, environment, pids, stat, tree
from cria.system.sockets import sockets


def is_engine_root(pid: int, proc: Path = PROC) -> bool:
    """Say whether `pid` is the root of an engine."""
    try:
        return find_root(pid, proc) == pid
    except (NoSuchProcess, NotAnEngine):
        return False


def find_root(pid: int, proc: Path = PROC) -> int:
    """Return the root of the engine that a process belongs to.

    Raises NoSuchProcess, and NotAnEngine with what the process is instead.
    """
    return _ProcessTable(proc).root_of(pid)


def find_engines(proc: Path = PROC) -> tuple[int, ...]:
    """Return the root of every engine on this host, ascending."""
    return _ProcessTable(proc).roots()


def find_engine(target: int | None = None, port: int | None = None, proc: Path = PROC) -> int:
    """Return the root of the engine with process `target` or listening port `port`; without both, of the only engine.

    Raises NoSuchProcess, NotAnEngine or AmbiguousTarget, each with what is there instead.
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
        details=_descriptions(roots, proc),
        remedy=f"name one of them, as in: {roots[0]}",
    )


def describe(pid: int, proc: Path = PROC) -> str:
    """Return one line about a process: its name, its script or module, its owner.

    Other arguments are left out: they may be secrets.
    """
    process = stat(pid, proc)
    if process is None:
        return f"{pid} has ended"
    program = _program_name(process.name, command(pid, proc))
    return f"{pid} is {program}, owned by {_owner(pid, proc)}"


def listening_ports(root: int, proc: Path = PROC) -> frozenset[int]:
    """Return the TCP ports on which the engine under `root` listens."""
    processes = tree(root, proc)
    held = [d for process in processes for d in descriptors(process.pid, proc)]
    inet = sockets(processes, held, proc).inet
    return frozenset(s.local.port for s in inet if s.state == "LISTEN")


def started_by_cria(root: int, proc: Path = PROC) -> bool:
    """Say whether `cria run` started this engine."""
    return environment(root, proc).get(ENGINE_MARK) == "1"


class _ProcessTable:
    """All processes of the host, read once for any number of questions."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        processes = (stat(pid, proc) for pid in pids(proc))
        self.stats: dict[int, Stat] = {p.pid: p for p in processes if p is not None}
        self.titled = {p.pid for p in self.stats.values() if p.name.startswith(TITLE_PREFIX)}
        self.parents_of_titled = {
            self.stats[pid].parent for pid in self.titled if self._is_child_of_python(pid)
        } - self.titled

    def roots(self) -> tuple[int, ...]:
        """Return the root of every engine, ascending."""
        candidates = [pid for pid in self.stats if self._is_root(pid) or pid in self.titled]
        return tuple(sorted({self.root_of(pid) for pid in candidates}))

    def root_of(self, pid: int) -> int:
        """Return the root of the engine of `pid`. Raises NoSuchProcess, NotAnEngine."""
        if pid not in self.stats:
            raise NoSuchProcess(f"process {pid} does not exist")
        ancestry = self._ancestry(pid)
        roots = [ancestor for ancestor in ancestry if self._is_root(ancestor)]
        # When the root has ended init has adopted its workers, which are an engine all the same.
        orphans = [ancestor for ancestor in ancestry if ancestor in self.titled]
        if not roots and not orphans:
            raise NotAnEngine(
                f"process {pid} does not belong to a vLLM engine", details=describe(pid, self.proc)
            )
        return (roots or orphans)[-1]

    def _is_root(self, pid: int) -> bool:
        if pid in self.titled or self.stats[pid].state == "Z":
            return False
        return pid in self.parents_of_titled or starts_engine(command(pid, self.proc))

    def _ancestry(self, pid: int) -> list[int]:
        ancestry = [pid]
        while (parent := self.stats[ancestry[-1]].parent) in self.stats and parent not in ancestry:
            ancestry.append(parent)
        return ancestry

    def _is_child_of_python(self, pid: int) -> bool:
        """Say whether the parent runs the same interpreter: init, which adopts orphans, does not."""
        program = _program(pid, self.proc)
        return program is not None and program == _program(self.stats[pid].parent, self.proc)


def _by_port(port: int, roots: tuple[int, ...], proc: Path) -> int:
    listening = [root for root in roots if port in listening_ports(root, proc)]
    if len(listening) == 1:
        return listening[0]
    if listening:
        raise AmbiguousTarget(
            f"{len(listening)} engines listen on port {port}",
            details=_descriptions(listening, proc),
        )
    others = _listeners(port, proc)
    if others:
        raise NotAnEngine(
            f"the process that listens on port {port} is not a vLLM engine",
            details=_descriptions(others, proc),
        )
    raise AmbiguousTarget(
        f"no engine listens on port {port}",
        details=_descriptions(roots, proc) or "no engine runs on this host",
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
        return {d.inode for d in descriptors(pid, proc) if d.kind == "socket"}
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
        return "no user: it has ended"
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _program_name(name: str, argv: tuple[str, ...]) -> str:
    start, module = locate_script(argv)
    if module is not None:
        return f"{name} -m {module}"
    if PurePosixPath(argv[0] if argv else name).name.startswith("python") and start < len(argv):
        return f"{name} {argv[start]}"
    return name


def _descriptions(roots: Iterable[int], proc: Path) -> str:
    return "\n".join(describe(pid, proc) for pid in roots)
