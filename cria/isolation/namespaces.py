"""The two places a restored engine can live: the host's namespaces, or namespaces of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cria.errors import RestoreFailed
from cria.system import processes
from cria.system.procfs import PROC, pids


class HostNamespaces:
    """The host's own namespaces: paths and PIDs are what they are."""

    root = Path("/")
    netns: Path | None = None

    def host_pid(self, pid: int) -> int:
        return pid

    def settle(self, pid: int) -> None:
        """Nothing to do: CRIU leaves the engine to the host's init."""

    def leave(self) -> None:
        """Nothing to do: nothing was made."""


class NamespacesOfProcess:
    """The namespaces in which a living process is: those of a clone, when it is dumped again."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")
        self.inner_pid = _namespace_pids(pid)[-1]

    def descriptor_numbers(self, descriptors: Sequence[int]) -> Sequence[int]:
        return descriptors

    def run(self, argv: Sequence[str], descriptors: Sequence[int]) -> None:
        """Run a program inside that inherits `descriptors`."""
        subprocess.Popen(
            ["nsenter", f"--target={self.pid}", "--mount", "--ipc", "--net", "--pid", *argv],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def in_other_pid_namespace(pid: int) -> bool:
    """Whether a process lives in another pid namespace than cria."""
    return _namespace(pid) != (PROC / "self" / "ns" / "pid").stat().st_ino


class CloneNamespaces:
    """New pid, mount and ipc namespaces (and network, if wanted) with a small init.

    `copy_on_write` are directories of which the engine gets a view of its own; `binds` are pairs of a
    file and the path at which the engine shall find it. Raises RestoreFailed.
    """

    def __init__(
        self,
        *,
        copy_on_write: Iterable[Path] = (),
        binds: Iterable[tuple[Path, Path]] = (),
        network: bool = False,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = Path(__file__).with_name("init.py")
        with theirs:
            self._outer = subprocess.Popen(
                [sys.executable, "-I", "-S", script, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        self._control = ours
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
        """The outer half names the init's PID, the inner half says when its view is made."""
        ready = False
        while not (ready and self.init):
            answer = self._receive()
            self.init = answer.get("init", self.init)
            ready = ready or "ready" in answer

    def descriptor_numbers(self, descriptors: Sequence[int]) -> Sequence[int]:
        return range(3, 3 + len(descriptors))

    def run(self, argv: Sequence[str], descriptors: Sequence[int]) -> None:
        """Run a program inside, which finds `descriptors` under the numbers 3, 4, ..."""
        self._send({"argv": list(argv)}, descriptors)

    def host_pid(self, pid: int) -> int:
        """The PID on the host of the process that has `pid` inside."""
        for candidate in pids():
            if _namespace_pids(candidate)[1:] == [pid] and self._is_inside(candidate):
                return candidate
        raise RestoreFailed(f"process {pid} of the engine is not in its namespaces")

    def settle(self, pid: int) -> None:
        """The engine, whose root has `pid` inside, lives on by itself; the init ends with it."""
        self._send({"stay": pid})
        self._control.close()

    def leave(self) -> None:
        """End whatever runs inside."""
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


def _namespace(pid: int) -> int:
    try:
        return (PROC / str(pid) / "ns" / "pid").stat().st_ino
    except OSError:
        return 0


def _namespace_pids(pid: int) -> list[int]:
    """A process's PIDs from the outermost namespace inwards (proc(5), NSpid)."""
    try:
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(word) for word in line.split()[1:]]
    except OSError:
        pass
    return []
