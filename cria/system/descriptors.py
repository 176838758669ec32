"""The open descriptors of a process, read from /proc/PID/fd."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Set
from pathlib import Path

import msgspec

from cria.model.inventory import Descriptor, DescriptorKind
from cria.system.procfs import PROC

_ANONYMOUS: dict[str, DescriptorKind] = {
    "eventfd": "eventfd",
    "eventpoll": "eventpoll",
    "io_uring": "io_uring",
    "inotify": "inotify",
    "timerfd": "timerfd",
    "signalfd": "signalfd",
    "pidfd": "pidfd",
}
# The kinds whose fdinfo says more than the link does: access mode, O_APPEND, what an epoll watches.
_WITH_INFO = {"file", "memfd", "pipe", "device", "eventpoll"}
_DELETED = " (deleted)"


def descriptors(pid: int, proc: Path = PROC) -> tuple[Descriptor, ...]:
    """Return the open descriptors of `pid`, by number; empty when it has ended."""
    directory = f"{proc}/{pid}/fd"
    try:
        numbers = sorted(int(name) for name in os.listdir(directory))  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return ()
    read = (_descriptor(pid, number, proc) for number in numbers)
    return tuple(descriptor for descriptor in read if descriptor is not None)


def with_protocols(
    held: Iterable[Descriptor], inodes: Set[int], proc: Path = PROC
) -> tuple[Descriptor, ...]:
    """Return the descriptors; a socket whose inode is not in `known` has its protocol as `path`.

    Netlink, packet and other sockets that are neither inet nor unix are told apart by that.
    """
    return tuple(
        msgspec.structs.replace(descriptor, path=_protocol(descriptor, proc))
        if descriptor.kind == "socket" and descriptor.inode not in inodes
        else descriptor
        for descriptor in held
    )


def _protocol(descriptor: Descriptor, proc: Path) -> str | None:
    try:
        name = os.getxattr(f"{proc}/{descriptor.pid}/fd/{descriptor.fd}", "system.sockprotoname")
    except OSError:
        return None
    return name.rstrip(b"\0").decode()


def _descriptor(pid: int, number: int, proc: Path) -> Descriptor | None:
    link = f"{proc}/{pid}/fd/{number}"
    try:
        target = os.readlink(link)  # noqa: PTH115
        descriptor = _of_target(pid, number, target) or _of_file(pid, number, target, link)
        if descriptor.kind in _WITH_INFO:
            return _with_info(descriptor, Path(f"{proc}/{pid}/fdinfo/{number}").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None  # closed since the directory was listed
    return descriptor


def _of_target(pid: int, number: int, target: str) -> Descriptor | None:
    """Read sockets, pipes and anonymous inodes from the link's text alone."""
    name, _, rest = target.partition(":")
    if name in ("socket", "pipe") and rest.startswith("["):
        kind: DescriptorKind = "socket" if name == "socket" else "pipe"
        return Descriptor(pid=pid, fd=number, kind=kind, target=target, inode=int(rest[1:-1]))
    if name == "anon_inode":
        kind = _ANONYMOUS.get(rest.strip("[]"), "other")
        return Descriptor(pid=pid, fd=number, kind=kind, target=target)
    return None


def _of_file(pid: int, number: int, target: str, link: str) -> Descriptor:
    status = os.stat(link)  # noqa: PTH116 - a link of /proc leads to the file itself, also unlinked
    deleted = target.endswith(_DELETED) and not _is_there(target, status)
    return Descriptor(
        pid=pid,
        fd=number,
        kind=_file_kind(status.st_mode, target),
        target=target,
        inode=status.st_ino,
        device=status.st_rdev or status.st_dev,
        deleted=deleted,
        path=target.removesuffix(_DELETED) if deleted else target,
        links=status.st_nlink,
    )


def _is_there(path: str, status: os.stat_result) -> bool:
    """Say whether a file really bears a name that ends like the kernel's mark of deletion."""
    try:
        return os.path.samestat(os.stat(path), status)  # noqa: PTH116
    except FileNotFoundError:
        return False


def _file_kind(mode: int, target: str) -> DescriptorKind:
    if target.startswith("/memfd:"):
        return "memfd"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "device"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISFIFO(mode):
        return "fifo"
    return "file" if target.startswith("/") else "other"


def _with_info(descriptor: Descriptor, text: str) -> Descriptor:
    flags, watches, locks = None, [], []
    for line in text.splitlines():
        if line.startswith("flags:"):
            flags = int(line.split()[1], 8)
        elif line.startswith("tfd:"):
            watches.append(int(line.split()[1]))
        elif line.startswith("lock:"):
            locks.append(" ".join(line.split()[2:]))
    return msgspec.structs.replace(
        descriptor, flags=flags, watches=tuple(sorted(watches)), locks=tuple(locks)
    )
