"""Hold one thing that CRIU may not be able to dump, and wait.

python blocker.py KIND [WORDS...]
"""

from __future__ import annotations

import ctypes
import os
import pty
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
HELD: list[object] = []
CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x44000
SYS_PERF_EVENT_OPEN, SYS_USERFAULTFD = 298, 323


def checked(result: int) -> int:
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result


def tcp_out(port: str) -> None:
    HELD.append(socket.create_connection(("127.0.0.1", int(port))))


def unix_stream(path: str) -> None:
    unix(socket.SOCK_STREAM, path)


def unix_dgram(path: str) -> None:
    unix(socket.SOCK_DGRAM, path)


def unix(kind: int, path: str) -> None:
    HELD.append(socket.socket(socket.AF_UNIX, kind))
    HELD[-1].connect(path)


def unix_listen(path: str) -> None:
    HELD.append(socket.socket(socket.AF_UNIX))
    HELD[-1].bind(path)
    HELD[-1].listen()


def unix_to_itself(path: str) -> None:
    """A connection that waits at a listener of the same process."""
    unix_listen(path)
    unix_stream(path)


def listen(port: str) -> None:
    HELD.append(socket.create_server(("127.0.0.1", int(port))))


def mptcp(port: str) -> None:
    HELD.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP))
    HELD[-1].bind(("127.0.0.1", int(port)))
    HELD[-1].listen()


def netlink_unread() -> None:
    """Ask for the links (RTM_GETLINK, dump) and leave the answer where it is."""
    HELD.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE))
    HELD[-1].send(struct.pack("=8I", 32, 18 | 0x301 << 16, 1, 0, 0, 0, 0, 0))


def netlink() -> None:
    HELD.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE))
    HELD[-1].bind((0, 0))


def packet() -> None:
    HELD.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))


def raw() -> None:
    HELD.append(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))


def vsock() -> None:
    HELD.append(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))


def udp_unread(port: str) -> None:
    HELD.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    HELD[-1].bind(("127.0.0.1", int(port)))
    HELD[-1].sendto(b"unread", ("127.0.0.1", int(port)))


def udp_cork(port: str) -> None:
    HELD.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    HELD[-1].setsockopt(socket.IPPROTO_UDP, 1, 1)
    HELD[-1].sendto(b"corked", ("127.0.0.1", int(port)))


def foreign_mount(directory: str) -> None:
    """Open a file on a file system that only a child's mount namespace has."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        checked(LIBC.unshare(CLONE_NEWNS))
        checked(LIBC.mount(b"none", b"/", None, MS_REC_PRIVATE, None))
        checked(LIBC.mount(b"none", directory.encode(), b"tmpfs", 0, None))
        file = os.open(f"{directory}/far", os.O_RDWR | os.O_CREAT)
        socket.send_fds(theirs, [b"."], [file])
        os._exit(0)
    HELD.append(socket.recv_fds(ours, 1, 1)[1])
    os.wait()
    ours.close(), theirs.close()


def deleted(path: str, size: str, allocated: str) -> None:
    """Hold a deleted file of `size` bytes, of which `allocated` take room on the disk."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    if int(allocated):
        os.posix_fallocate(file, 0, int(allocated))
    os.ftruncate(file, int(size))
    os.unlink(path)
    HELD.append(file)


def opened(*words: str) -> None:
    """Open files: each a path and the flags of open(2)."""
    for path, flags in zip(words[::2], words[1::2], strict=True):
        HELD.append(os.open(path, int(flags)))


def inotify(path: str) -> None:
    HELD.append(checked(LIBC.inotify_init1(0)))
    checked(LIBC.inotify_add_watch(HELD[-1], path.encode(), 0xFFF))


def sysv_shm() -> None:
    LIBC.shmat.restype = ctypes.c_void_p
    number = checked(LIBC.shmget(0, ctypes.c_size_t(4096), 0o600))
    assert LIBC.shmat(number, None, 0) != ctypes.c_void_p(-1).value
    checked(LIBC.shmctl(number, 0, None))


def perf() -> None:
    """A counter of page faults of this process (perf_event_open(2))."""
    attributes = struct.pack("=IIQ", 1, 128, 2) + bytes(112)
    HELD.append(checked(LIBC.syscall(SYS_PERF_EVENT_OPEN, attributes, 0, -1, -1, 0)))


def userfault() -> None:
    HELD.append(checked(LIBC.syscall(SYS_USERFAULTFD, 0)))


def zombie() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def stopped() -> None:
    pid = os.fork()
    if pid == 0:
        signal.raise_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def namespace_child(flag: str) -> None:
    """Fork a child that leaves one of our namespaces; `flag` is clone(2)'s, hexadecimal."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        checked(LIBC.unshare(int(flag, 16)))
        os.write(theirs, b".")
        signal.pause()
    os.read(ours, 1)


def terminal() -> None:
    HELD.append(pty.openpty())


def tty(path: str) -> None:
    HELD.append(os.open(path, os.O_RDWR | os.O_NOCTTY))


def fifo(path: str) -> None:
    HELD.append(os.open(path, os.O_RDWR))


def dead_leader() -> None:
    """The first thread ends, another lives on."""
    threading.Thread(target=signal.pause).start()
    print("ready", flush=True)
    LIBC.pthread_exit(None)


def memfd() -> None:
    HELD.append(os.memfd_create("held"))


def pidfd() -> None:
    HELD.append(os.pidfd_open(os.getpid()))


def nothing() -> None:
    pass


if __name__ == "__main__":
    make: Callable[..., None] = globals()[sys.argv[1].replace("-", "_")]
    make(*sys.argv[2:])
    print("ready", flush=True)
    while True:
        signal.pause()
