"""PID 1 of a clone's namespaces: makes its private view of the host, reaps, passes signals on, ends with it.

Run as a script with nothing but the standard library; it stays as long as the engine lives. It talks
to cria over a socket: its settings come first, then the call for CRIU, then the word to stay. When
that socket closes before, everything in the namespaces ends.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import os
import re
import signal
import socket
import struct
import sys
from types import FrameType
from typing import Any

NEWNS, NEWIPC, NEWPID, NEWNET = 0x00020000, 0x08000000, 0x20000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    fields = (x.encode() if x is not None else None for x in (source, target, kind))
    checked(libc.mount(*fields, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def private_view(settings: dict[str, Any]) -> None:
    """Mounts that only this clone sees: its own /dev/shm and /proc, copy-on-write directories, its log.

    What the copy-on-write directories collect lies on a memory file system that is hidden below /proc,
    so it goes with the namespace and nobody has to clear it away. An overlay shows one file system: what
    is mounted below such a directory, a disk with models perhaps, is mounted there again.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Opened before a copy-on-write directory covers them: the clone's log is the host's file.
    below = [(at, at) for at in mounted_below(settings["copy_on_write"])]
    binds = [*below, *map(tuple, settings["binds"])]
    sources = [os.open(source, os.O_PATH | os.O_CLOEXEC) for source, _ in binds]
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700")
    for number, directory in enumerate(settings["copy_on_write"]):
        upper, work = f"/proc/{number}", f"/proc/{number}.work"
        os.mkdir(upper)
        os.mkdir(work)
        known = os.stat(directory)
        os.chown(upper, known.st_uid, known.st_gid)
        os.chmod(upper, known.st_mode & 0o7777)
        options = f"lowerdir={directory},upperdir={upper},workdir={work}"
        mount("overlay", directory, "overlay", MS_NODEV, options)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for source, (_, target) in zip(sources, binds, strict=True):
        mount(f"/proc/self/fd/{source}", target, None, MS_BIND | MS_REC)
        os.close(source)


def mounted_below(directories: list[str]) -> list[str]:
    """The outermost mount points below some directories (proc(5), mountinfo, with its octal escapes)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        escaped = {line.split()[4] for line in lines}
    points = {re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point) for point in escaped}
    found: list[str] = []
    for point in sorted(points):
        inside = any(point.startswith(f"{directory}/") for directory in directories)
        if inside and not any(point.startswith(f"{outer}/") for outer in found):
            found.append(point)
    return found


def raise_loopback() -> None:
    """A new network namespace has its loopback down, and CRIU does not start without it."""
    with socket.socket() as any_socket:
        request = struct.pack("16sH14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


def receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and the file descriptors that came with it; None when cria has hung up."""
    descriptors = array.array("i")
    room = socket.CMSG_LEN(8 * descriptors.itemsize)
    data, ancillary, _, _ = control.recvmsg(1 << 16, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return (json.loads(data) if data else None), list(descriptors)


def start(argv: list[str], descriptors: list[int]) -> None:
    """Run a program that finds `descriptors` under the numbers 3, 4, ... and nothing else open."""
    if os.fork():
        return
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        # Out of the way first, so that no number is overwritten before it has been copied.
        moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 64) for each in descriptors]
        for number, descriptor in enumerate([null, null, null, *moved]):
            os.dup2(descriptor, number, inheritable=True)
        os.execv(argv[0], argv)
    finally:
        os._exit(127)


def attend(control: socket.socket) -> int:
    """Serve cria until it says stay; returns the PID of the engine's root."""
    while True:
        message, descriptors = receive(control)
        if message is None:
            os._exit(1)  # PID 1 ends, and the kernel ends all that is in here
        if "stay" in message:
            return int(message["stay"])
        start(message["argv"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def outlive(root: int) -> None:
    """Reap whoever ends, pass SIGTERM on, and leave when the engine's root has."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(root, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    while True:
        try:
            pid, _status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if pid == root:
            return


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    settings, _ = receive(control)
    assert settings is not None
    flags = NEWNS | NEWIPC | NEWPID | (NEWNET if settings["network"] else 0)
    checked(libc.unshare(flags), "unshare")
    pid = os.fork()
    if pid:
        control.send(json.dumps({"init": pid}).encode())
        os._exit(0)
    os.setsid()
    try:
        private_view(settings)
        if settings["network"]:
            raise_loopback()
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        os._exit(1)
    control.send(json.dumps({"ready": True}).encode())
    root = attend(control)
    control.close()
    outlive(root)


if __name__ == "__main__":
    main()
