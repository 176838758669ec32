"""CRIU hands a userfaultfd of each process off to the page server."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from cria.memory.lazy.protocol import HandoffFailed, receive_userfaultfds

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def send_userfaultfd(channel: socket.socket, pid: int) -> None:
    """Send as CRIU does: the PID, then one byte with a descriptor."""
    channel.send(struct.pack("=i", pid))
    if pid > 0:
        descriptor = os.eventfd(pid)
        socket.send_fds(channel, [b"\0"], [descriptor])
        os.close(descriptor)


def test_each_process_has_its_userfaultfd(ends: Ends) -> None:
    ours, theirs = ends
    for pid in (12, -40, 11):  # a zombie has no userfaultfd
        send_userfaultfd(theirs, pid)

    descriptors = receive_userfaultfds(ours, (11, 12))

    assert {pid: os.eventfd_read(descriptor) for pid, descriptor in descriptors.items()} == {
        11: 11,
        12: 12,
    }
    for descriptor in descriptors.values():
        os.close(descriptor)


@pytest.mark.parametrize("sent", [(), (12,), (12, 12), (12, 13)])
def test_anything_else_is_refused(ends: Ends, sent: tuple[int, ...]) -> None:
    ours, theirs = ends
    for pid in sent:
        send_userfaultfd(theirs, pid)
    theirs.close()

    with pytest.raises(HandoffFailed):
        receive_userfaultfds(ours, (11, 12))
