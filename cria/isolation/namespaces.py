"""Where an engine lives: in the host's namespaces, or in namespaces that cria made for a clone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cria.errors import EngineBlocked, RestoreFailed
from cria.system import processes
from cria.system.procfs import PROC, pids

_INIT = Path(__file__).with_name("init.py")


class HostNamespaces:
    """The host's own namespaces, in which paths and PIDs mean what they mean to cria."""

    root = Path("/")
    netns: Path | None = None

    def host_pid(self, pid: int) -> int:
        return pid

    def settle(self, pid: int) -> None:
        """Do nothing: CRIU leaves the engine to the host's init."""

    def leave(self) -> None:
        """Do nothing: nothing was made."""


class NamespacesOfProcess:
    """The namespaces of a clone that is dumped again. cria runs CRIU inside them.

    Raises EngineBlocked for namespaces that cria did not make: there CRIU's path names another
    file, which cria would execute with its own rights.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")
        inner = _namespace_pids(pid)
        foreign = _why_foreign(pid)
        if not inner or foreign:
            raise EngineBlocked(
                f"process {pid} lives in namespaces that cria did not make",
                details=foreign or "it has ended",
                remedy="run cria inside the container, or use: cria kubernetes checkpoint",
            )
        self.inner_pid = inner[-1]

    def descriptor_numbers(self, descriptors: Sequence[int]) -> Sequence[int]:
        """Return under which numbers `run` gives these descriptors to a program."""
        return descriptors

    def run(self, argv: Sequence[str], descriptors: Sequence[int]) -> None:
        """Run a program of the host inside, which inherits `descriptors`. Raises EngineBlocked."""
        if not _is_same_file(Path(argv[0]), self.root):
            raise EngineBlocked(
                f"{argv[0]} is another file in the namespaces of process {self.pid}",
                remedy="run cria inside the container, or use: cria kubernetes checkpoint",
            )
        subprocess.Popen(
            ["nsenter", f"--target={self.pid}", "--mount", "--ipc", "--net", "--pid", *argv],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


class CloneNamespaces:
    """New pid, mount and ipc namespaces, and a network namespace if wanted, with a small init.

    The engine gets a private view of the directories `copy_on_write`. `binds` are pairs of a file and the
    path at which the engine finds it. Raises RestoreFailed.
    """

    def __init__(
        self,
        *,
        copy_on_write: Iterable[Path] = (),
        binds: Iterable[tuple[Path, Path]] = (),
        network: bool = False,
    ) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The init is a script of the standard library alone: it is PID 1 as long as the engine lives, and
        # every mount that it makes ends with it.
        with theirs:
            self._outer = subprocess.Popen(
                [sys.executable, "-I", "-S", _INIT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        self._send(
            {
                "copy_on_write": [str(path) for path in copy_on_write],
                "binds": [[str(source), str(target)] for source, target in binds],
                "network": network,
            }
        )
        self.init = 0
        self._wait_until_ready()
        self._outer.wait()
        self.root = Path(f"/proc/{self.init}/root")
        self.netns = Path(f"/proc/{self.init}/ns/net") if network else None

    def _wait_until_ready(self) -> None:
        """Wait until the init's parent has named its PID, and the init has mounted the private view."""
        ready = False
        while not (ready and self.init):
            answer = self._receive()
            self.init = answer.get("init", self.init)
            ready = ready or "ready" in answer

    def descriptor_numbers(self, descriptors: Sequence[int]) -> Sequence[int]:
        """Return under which numbers `run` gives these descriptors to a program."""
        # CRIU finds descriptors by their numbers: it cannot see cria's PID from inside.
        return range(3, 3 + len(descriptors))

    def run(self, argv: Sequence[str], descriptors: Sequence[int]) -> None:
        """Run a program inside, which has `descriptors` as 3, 4, ..."""
        self._send({"argv": list(argv)}, descriptors)

    def host_pid(self, pid: int) -> int:
        """Return the PID on the host of the process that is `pid` inside. Raises RestoreFailed."""
        for candidate in pids():
            if _namespace_pids(candidate)[1:] == [pid] and self._is_inside(candidate):
                return candidate
        raise RestoreFailed(f"process {pid} of the engine is not in its namespaces")

    def settle(self, pid: int) -> None:
        """Leave the engine, whose root process is `pid` inside, to its init, which ends with it."""
        self._send({"stay": pid})
        self._control.close()

    def leave(self) -> None:
        """Kill everything inside."""
        self._control.close()
        if self.init:
            processes.kill([self.init])

    def _is_inside(self, pid: int) -> bool:
        return _namespace(pid) == _namespace(self.init)

    def _send(self, message: dict[str, Any], descriptors: Iterable[int] = ()) -> None:
        socket.send_fds(self._control, [json.dumps(message).encode()], list(descriptors))

    def _receive(self) -> dict[str, Any]:
        data = self._control.recv(1 << 16)
        if not data:
            raise RestoreFailed("the namespaces for the engine could not be made")
        message: dict[str, Any] = json.loads(data)
        if "error" in message:
            raise RestoreFailed(
                "the namespaces for the engine could not be made", details=message["error"]
            )
        return message


def in_other_pid_namespace(pid: int) -> bool:
    """Say whether a process lives in another pid namespace than cria."""
    return _namespace(pid) != (PROC / "self" / "ns" / "pid").stat().st_ino


def _why_foreign(pid: int) -> str | None:
    """Return what shows that the namespaces of `pid` are not those of a clone; None if nothing does.

    To make pid and mount namespaces takes CAP_SYS_ADMIN in a user namespace. Where that is cria's own user
    namespace and the root directory is cria's own, only root of this host can have made them, from the
    host's own files. A container has another root directory.
    """
    own, its = (Path(f"/proc/{which}/ns/user") for which in ("self", pid))
    try:
        if its.stat().st_ino != own.stat().st_ino:
            return "they belong to another user namespace"
        if not _is_same_file(Path("/"), Path(f"/proc/{pid}/root")):
            return "they have another root directory"
        init = _init_of(pid)
        if init is None:
            return "their first process is not the init of a clone"
    except OSError as error:
        return str(error)
    return None


def _init_of(pid: int) -> int | None:
    """Return the host's PID of the clone's init above `pid`: a Python of root that runs cria's init.py."""
    while pid > 1:
        if _namespace_pids(pid)[-1:] == [1]:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            script = next((word for word in argv if word.endswith(b"/init.py")), None)
            is_python = Path(f"/proc/{pid}/exe").stat() == Path(sys.executable).stat()
            is_roots = Path(f"/proc/{pid}").stat().st_uid == 0
            return pid if script and is_python and is_roots else None
        pid = _parent(pid)
    return None


def _is_same_file(path: Path, root: Path) -> bool:
    """Say whether `path` names the same file below `root` as on the host."""
    try:
        here, there = path.stat(), (root / path.relative_to("/")).stat()
    except (OSError, ValueError):
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _namespace(pid: int) -> int:
    try:
        return (PROC / str(pid) / "ns" / "pid").stat().st_ino
    except OSError:
        return 0


def _status(pid: int, field: str) -> list[str]:
    """Return the values of a line of /proc/PID/status; none where the process has ended."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return []
    return next((line.split()[1:] for line in lines if line.startswith(f"{field}:")), [])


def _namespace_pids(pid: int) -> list[int]:
    """Return the PIDs of a process from the outermost namespace that cria sees to its own."""
    return [int(value) for value in _status(pid, "NSpid")]


def _parent(pid: int) -> int:
    return int(next(iter(_status(pid, "PPid")), 0))
