"""What a restore and its page server say to each other, one message at a time."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection

import msgspec


class Serve(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First of all: what to serve. Descriptors of CRIU's listening socket and of the images come with it."""

    criu: str
    pids: tuple[int, ...]
    working_set: str
    checkpoint: str
    answered_seconds: float


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Every process is rebuilt and none runs: these are their PIDs on the host."""

    pids: tuple[int, ...]


class Running(msgspec.Struct, frozen=True, tag=True):
    """CRIU has let go of them."""


class Answered(msgspec.Struct, frozen=True, tag=True):
    """The engine has served its first request."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The page server may be relied upon: `missing` bytes will arrive."""

    missing: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The page server cannot go on. The engine was ended, if it ran."""

    why: str


Said = Serve | Rebuilt | Running | Answered | Ready | Failed


def send(channel: socket.socket, word: Said, descriptors: tuple[int, ...] = ()) -> None:
    socket.send_fds(channel, [msgspec.json.encode(word)], descriptors)


def receive(channel: socket.socket) -> tuple[Said | None, list[int]]:
    """The next message and its descriptors; None when the other side has hung up."""
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 8)
    except ConnectionResetError:
        return None, []
    return (msgspec.json.decode(data, type=Said) if data else None), descriptors


SOCKET = "lazy-pages.socket"  # in CRIU's working directory


class HandoffFailed(Exception):
    """CRIU hung up, or said something else."""


def receive_userfaultfds(channel: socket.socket, pids: Collection[int]) -> dict[int, int]:
    """The userfaultfd of each of `pids`, as numbered in the images. Raises HandoffFailed."""
    handed: dict[int, int] = {}
    while len(handed) < len(pids):
        pid = _word(channel)
        if pid < 0:  # a zombie has no memory
            continue
        if pid not in pids or pid in handed:
            raise HandoffFailed(f"CRIU sent a process that is not expected: {pid}")
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if len(descriptors) != 1:
            raise HandoffFailed(f"CRIU sent no userfaultfd of process {pid}")
        handed[pid] = descriptors[0]
    return handed


def _word(channel: socket.socket) -> int:
    data = channel.recv(4, socket.MSG_WAITALL)
    if len(data) != 4:
        raise HandoffFailed("CRIU ended before the restore was complete")
    word: int = struct.unpack("=i", data)[0]
    return word
