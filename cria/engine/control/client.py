"""Give commands to the part of cria inside an engine, over its unix socket."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import msgspec

from cria.engine.inventory.roles import CONTROL
from cria.errors import QuiesceFailed
from cria.model.inventory import Inventory, NamedGroup

_GRACE_SECONDS = 5.0  # the engine keeps the deadline itself and says what it waited for


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """The control socket of an engine: `path` is as the engine sees it, in the mount namespace of `pid`."""

    pid: int
    path: str

    def ask(self, command: str, *, seconds: float, **words: Any) -> dict[str, Any]:
        """Give one command and return the answer. Raises QuiesceFailed, also when `seconds` have passed."""
        request = {"command": command, "seconds": seconds, **words}
        try:
            answer = self._exchange(json.dumps(request).encode() + b"\n", seconds + _GRACE_SECONDS)
            said: dict[str, Any] = json.loads(answer)
        except (OSError, ValueError) as error:
            raise QuiesceFailed(
                f"the engine of process {self.pid} did not answer: {command}",
                details=f"{self.path}: {error or type(error).__name__}",
            ) from error
        if "error" in said:
            raise QuiesceFailed(
                f"the engine of process {self.pid} could not {command}", details=said["error"]
            )
        return said

    def _exchange(self, request: bytes, seconds: float) -> bytes:
        """Send, then read until the engine hangs up: after that it holds no end of this connection."""
        deadline = time.monotonic() + seconds
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            self._connect(connection)
            connection.sendall(request)
            received = b""
            while part := connection.recv(65536):
                received += part
                connection.settimeout(max(0.001, deadline - time.monotonic()))
        return received

    def _connect(self, connection: socket.socket) -> None:
        """Through the engine's own root directory, so that a clone's socket is found and not another's."""
        inside = Path(f"/proc/{self.pid}/root") / self.path.removeprefix("/")
        # By way of a descriptor: a path in sun_path may have 107 bytes.
        directory = os.open(inside.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{inside.name}")
        finally:
            os.close(directory)
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        listener = struct.unpack("3i", credentials)[1]
        owner = Path(f"/proc/{self.pid}").stat().st_uid
        if listener not in (0, owner):
            raise PermissionError(f"uid {listener} listens there, not the engine's uid {owner}")


def named_groups(inventory: Inventory, *, seconds: float = 2.0) -> tuple[NamedGroup, ...]:
    """The process groups of torch.distributed as the workers know them; none where cria is not inside.

    Raises QuiesceFailed when a worker does not answer in time, as one in the middle of a long step.
    """
    control = find(inventory)
    if control is None:
        return ()
    workers = control.ask("groups", seconds=seconds)["ranks"]
    told = msgspec.convert([group for worker in workers for group in worker], list[NamedGroup])
    return tuple(sorted(set(told)))


def find(inventory: Inventory) -> Control | None:
    """The control socket among what an engine holds; None when cria is not inside."""
    for each in inventory.unix_sockets:
        if each.state == "LISTEN" and each.role.name == CONTROL and each.path and each.holders:
            return Control(pid=each.holders[0].pid, path=each.path)
    return None
