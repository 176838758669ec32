"""PID 1 of a clone's namespaces: mount its private view of the host, reap, forward signals, end with the engine.

Run as a script with nothing but the standard library, because it stays as long as the engine lives.
cria sends it messages over a socket: the settings, then programs to run, then which process to stay
for. If the socket closes before, everything in the namespaces ends.
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
    """Mount what only this clone sees: its own /dev/shm and /proc, copy-on-write directories, its log.

    Changes to copy-on-write directories go to a memory file system that is hidden below /proc. It ends
    with the namespace, so nothing has to be cleaned up. An overlay shows one file system: what is mounted
    below such a directory, a disk with models perhaps, is mounted there again.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Opened before a copy-on-write directory covers them: the clone's log is the host's file.
    mounts = [(point, point) for point in mounted_below(settings["copy_on_write"])]
    binds = [*mounts, *map(tuple, settings["binds"])]
    sources = [os.open(source, os.O_PATH | os.O_CLOEXEC) for source, _ in binds]
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700")
    for number, directory in enumerate(settings["copy_on_write"]):
        upper, work = f"/proc/{number}", f"/proc/{number}.work"
        os.mkdir(upper)
        os.mkdir(work)
        status = os.stat(directory)
        os.chown(upper, status.st_uid, status.st_gid)
        os.chmod(upper, status.st_mode & 0o7777)
        options = f"lowerdir={escaped(directory)},upperdir={upper},workdir={work}"
        mount("overlay", directory, "overlay", MS_NODEV, options)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for source, (_, target) in zip(sources, binds, strict=True):
        mount(f"/proc/self/fd/{source}", target, None, MS_BIND | MS_REC)
        os.close(source)


def escaped(path: str) -> str:
    """Escape what separates overlay options and layers (Documentation/filesystems/overlayfs.rst)."""
    return re.sub(r"([\\:,])", r"\\\1", path)


def mounted_below(directories: list[str]) -> list[str]:
    """Return the outermost mount points below some directories (proc(5), mountinfo: octal escapes)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        names = {line.split()[4] for line in lines}
    points = {re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), name) for name in names}
    outermost: list[str] = []
    for point in sorted(points):
        inside = any(point.startswith(f"{directory}/") for directory in directories)
        if inside and not any(point.startswith(f"{outer}/") for outer in outermost):
            outermost.append(point)
    return outermost


def raise_loopback() -> None:
    """Raise the loopback interface: it is down in a new namespace, and CRIU needs it."""
    with socket.socket() as any_socket:
        request = struct.pack("16sH14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


def receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return one message and its file descriptors; None when cria has closed the socket."""
    descriptors = array.array("i")
    room = socket.CMSG_LEN(8 * descriptors.itemsize)
    data, ancillary, _, _ = control.recvmsg(1 << 16, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return (json.loads(data) if data else None), list(descriptors)


def start(argv: list[str], descriptors: list[int]) -> None:
    """Run a program that has `descriptors` as 3, 4, ... and nothing else open."""
    if os.fork():
        return
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        # Moved to high numbers first, so that none is overwritten before it has been copied.
        moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 64) for number in descriptors]
        for number, descriptor in enumerate([null, null, null, *moved]):
            os.dup2(descriptor, number, inheritable=True)
        os.execv(argv[0], argv)
    finally:
        os._exit(127)


def serve(control: socket.socket) -> int:
    """Run programs for cria until it says for which process to stay; return its PID."""
    while True:
        message, descriptors = receive(control)
        if message is None:
            os._exit(1)  # PID 1 ends, and the kernel kills everything in the namespace
        if "stay" in message:
            return int(message["stay"])
        start(message["argv"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def stay(root: int) -> None:
    """Reap processes and forward signals until the engine's root process has ended."""

    def forward(number: int, _frame: FrameType | None) -> None:
        os.kill(root, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
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
    root = serve(control)
    control.close()
    stay(root)


if __name__ == "__main__":
    main()
