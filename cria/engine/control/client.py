"""The client of the control socket that cria's agent opens in an engine. Standard library only, for Python 3.9.

Action scripts on nodes and programs in pods use this file without the rest of cria, so it imports nothing else of cria
but for type checking.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time

TYPE_CHECKING = False  # importing typing takes longer than a request
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from cria.model.manifest import Inflight, Weights

GRACE_SECONDS = 5.0  # the engine keeps the deadline itself, and its answer says what it waited for
LEASE_REQUEST_SECONDS = 10.0
MAX_ANSWER_BYTES = 16 << 20
_UCRED = struct.Struct("3i")  # pid, uid, gid (unix(7), SO_PEERCRED)


class ControlFailed(Exception):
    """The engine did not answer, or could not carry out a command; `details` says why."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(f"{message}: {details}")
        self.message = message
        self.details = details


class ControlClient:
    """Sends commands to the control socket of one engine. The methods raise ControlFailed.

    `path` is as process `pid` sees it. With `trusted_pids` only these processes may listen there, by their PIDs
    in our own PID namespace; else the user of process `pid`, or root.
    """

    def __init__(self, pid: int, path: str, trusted_pids: Iterable[int] | None = None) -> None:
        self.pid = pid
        self.path = path
        self._trusted_pids = None if trusted_pids is None else frozenset(trusted_pids)
        self._held_directory: int | None = None

    def hold_directory(self) -> None:
        """Open the directory of the socket for all later calls, also those after `pid` has ended. Raises OSError."""
        self._held_directory = self._open_directory()

    def pause(self, inflight: Inflight, seconds: float) -> bool:
        """Stop the scheduler and empty its caches. Returns False where somebody else had paused the engine before."""
        return bool(self.call("pause", seconds=seconds, inflight=inflight).get("by_cria", True))

    def drop_caches(self, seconds: float) -> dict[str, Any]:
        """Let all workers of a paused engine reach a barrier and drop their KV caches. Returns what they report."""
        return self.call("quiesce", seconds=seconds)

    def sleep(self, weights: Weights, seconds: float) -> Weights | None:
        """Let vLLM free its GPU memory. Returns where the weights are then; None when the engine cannot sleep."""
        answer: Weights | None = self.call("sleep", seconds=seconds, weights=weights)["weights"]
        return answer

    def extend_lease(self, lease: float, seconds: float = LEASE_REQUEST_SECONDS) -> float:
        """Let the engine stay paused for `lease` seconds from now on. Returns the seconds that it grants."""
        return float(self.call("renew", seconds=seconds, lease=lease)["lease_seconds"])

    def resume(self, seconds: float) -> bool:
        """Let the engine go on. Returns whether the pause was cria's; the second of two calls changes nothing."""
        return bool(self.call("resume", seconds=seconds)["resumed"])

    def call(self, command: str, *, seconds: float, **arguments: Any) -> dict[str, Any]:
        """Send one command and return the answer; the engine gives up after `seconds`, and this shortly after."""
        request = {"command": command, "seconds": seconds, **arguments}
        try:
            received = self._exchange(json.dumps(request).encode() + b"\n", seconds + GRACE_SECONDS)
            answer = json.loads(received)
            if not isinstance(answer, dict):
                raise ValueError("the answer is no JSON object")
        except (OSError, ValueError) as error:
            raise ControlFailed(
                f"the engine of process {self.pid} did not answer: {command}",
                f"{self.path}: {error or type(error).__name__}",
            ) from error
        if "error" in answer:
            raise ControlFailed(
                f"the engine of process {self.pid} could not {command}", str(answer["error"])
            )
        return answer

    def _exchange(self, request: bytes, seconds: float) -> bytes:
        """Send, then read until the engine hangs up: after that it holds no end of this connection."""
        deadline = time.monotonic() + seconds
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            self._connect(connection)
            self._check_listener(connection)
            connection.sendall(request)
            received = b""
            while len(received) < MAX_ANSWER_BYTES and (part := connection.recv(65536)):
                received += part
                connection.settimeout(max(0.001, deadline - time.monotonic()))
        return received

    def _connect(self, connection: socket.socket) -> None:
        # By way of a descriptor: a path in sun_path may have 107 bytes (unix(7)).
        held = self._held_directory
        directory = self._open_directory() if held is None else held
        try:
            connection.connect(f"/proc/self/fd/{directory}/{os.path.basename(self.path)}")  # noqa: PTH119
        finally:
            if held is None:
                os.close(directory)

    def _open_directory(self) -> int:
        """Through the root directory of the engine: a clone has a socket of its own at the same path."""
        directory = f"/proc/{self.pid}/root{os.path.dirname(self.path)}"  # noqa: PTH120
        return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _check_listener(self, connection: socket.socket) -> None:
        """Raise PermissionError where the path, or a link at it, leads to a socket of another program."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(credentials)
        if self._trusted_pids is not None:
            if pid not in self._trusted_pids:
                raise PermissionError(f"process {pid}, which listens there, is not of this tree")
            return
        owner = os.stat(f"/proc/{self.pid}").st_uid  # noqa: PTH116
        if uid not in (0, owner):
            raise PermissionError(f"uid {uid} listens there, not the engine's uid {owner}")


def quiesce_all(
    clients: Sequence[ControlClient], inflight: Inflight, seconds: float, lease: float
) -> tuple[list[dict[str, Any]], list[float]]:
    """Quiesce all engines within `seconds`, then keep them paused for `lease` seconds.

    Returns what the workers of each report, and the leases that are granted: none by an agent that is too old to
    know them. API servers of one engine share its pause, which belongs to the first. Raises ControlFailed; then
    some engines may be paused, and the caller resumes them.
    """
    deadline = time.monotonic() + seconds

    def left(least: float) -> float:
        return max(least, round(deadline - time.monotonic(), 1))

    paused_by_cria = [client for client in clients if client.pause(inflight, left(0.01))]
    reports = [client.drop_caches(left(1.0)) for client in clients]
    leases = []
    for client in paused_by_cria:
        try:
            leases.append(client.extend_lease(lease))
        except ControlFailed as failed:
            if "no such command" not in failed.details:
                raise
    return reports, leases
