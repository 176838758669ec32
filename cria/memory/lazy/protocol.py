"""What a restore, the supervisor, the page server and CRIU tell each other.

The restore and the supervisor exchange messages. The supervisor and the page server, which it forks, share
events. CRIU hands its userfaultfds off to both before the fork.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection

import msgspec


class Serve(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message of a restore: what to serve.

    The directory with the images comes with it, as a descriptor. `working_set` is a path, `checkpoint`
    tells whether it is of this checkpoint.
    """

    criu: str
    pids: tuple[int, ...]
    working_set: str
    checkpoint: str
    answer_seconds: float


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """CRIU has made every process, and none runs; `pids` are their PIDs on the host."""

    pids: tuple[int, ...]


class Running(msgspec.Struct, frozen=True, tag=True):
    """CRIU has let the processes run, and does not trace them any more."""


class Answered(msgspec.Struct, frozen=True, tag=True):
    """The engine has answered its first request."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The page server will load `missing` bytes."""

    missing: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The page server cannot go on. The engine was ended, if it ran."""

    why: str


Message = Serve | Rebuilt | Running | Answered | Ready | Failed


def send(channel: socket.socket, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message, with copies of these descriptors."""
    socket.send_fds(channel, [msgspec.json.encode(message)], descriptors)


def receive(channel: socket.socket) -> tuple[Message | None, list[int]]:
    """Receive one message and its descriptors; the message is None where the other side has closed."""
    try:
        content, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 8)
    except ConnectionResetError:
        return None, []
    message = msgspec.json.decode(content, type=Message) if content else None
    return message, descriptors


# From the page server to its supervisor.
STARTED = b"started"  # it serves every process
CHILD = b"child"  # a process has forked; the userfaultfd of the child comes with it


class Event:
    """Happens once; from then on `descriptor` is readable, in this process and in those that it forked."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        os.eventfd_write(self.descriptor, 1)


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to the engine during a lazy restore.

    `rebuilt`: every process exists, and none runs. `answered`: the engine has answered its first
    request; it counts as such after `answer_seconds`. `loaded`: no process misses any memory.
    """

    rebuilt: Event
    answered: Event
    loaded: Event
    answer_seconds: float


PROCESS_NAME = "cria-lazy"  # of the supervisor and the page server
SOCKET = "lazy-pages.socket"  # CRIU connects to it in its working directory


class HandoffFailed(Exception):
    """CRIU closed its connection, or sent something unexpected."""


def receive_userfaultfds(channel: socket.socket, pids: Collection[int]) -> dict[int, int]:
    """Receive from CRIU the userfaultfd of each of `pids`, the PIDs in the images.

    CRIU sends them as to its own lazy-pages (send_uffd in criu/uffd.c). Raises HandoffFailed.
    """
    userfaultfds: dict[int, int] = {}
    while len(userfaultfds) < len(pids):
        pid = _receive_pid(channel)
        if pid < 0:  # a zombie, which has no memory
            continue
        if pid not in pids or pid in userfaultfds:
            raise HandoffFailed(f"CRIU sent a process that is not expected: {pid}")
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if len(descriptors) != 1:
            raise HandoffFailed(f"CRIU sent no userfaultfd of process {pid}")
        userfaultfds[pid] = descriptors[0]
    return userfaultfds


def _receive_pid(channel: socket.socket) -> int:
    content = channel.recv(4, socket.MSG_WAITALL)
    if len(content) != 4:
        raise HandoffFailed("CRIU ended before the restore was complete")
    (pid,) = struct.unpack("=i", content)
    return int(pid)
