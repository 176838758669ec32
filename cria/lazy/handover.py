"""What CRIU sends to a page server over lazy-pages.socket: a PID and its userfaultfd, for each process.

Source: send_uffd and lazy_pages_setup_zombie in CRIU's criu/uffd.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection

SOCKET = "lazy-pages.socket"  # in CRIU's working directory


class HandoverFailed(Exception):
    """CRIU hung up, or said something else."""


def receive(channel: socket.socket, pids: Collection[int]) -> dict[int, int]:
    """The userfaultfd of each of `pids`, as numbered in the images. Raises HandoverFailed."""
    handed: dict[int, int] = {}
    while len(handed) < len(pids):
        pid = _word(channel)
        if pid < 0:  # a zombie has no memory
            continue
        if pid not in pids or pid in handed:
            raise HandoverFailed(f"CRIU sent a process that is not expected: {pid}")
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if len(descriptors) != 1:
            raise HandoverFailed(f"CRIU sent no userfaultfd of process {pid}")
        handed[pid] = descriptors[0]
    return handed


def _word(channel: socket.socket) -> int:
    data = channel.recv(4, socket.MSG_WAITALL)
    if len(data) != 4:
        raise HandoverFailed("CRIU ended before the restore was complete")
    word: int = struct.unpack("=i", data)[0]
    return word
