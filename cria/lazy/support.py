"""Can this host restore lazily? The kernel must have userfaultfd, with word of changed mappings, and allow it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

import msgspec

# Source: asm/unistd.h of each; the others share the numbers of arm64.
_SYSCALL = {"x86_64": 323}.get(platform.machine(), 282)
_API_NUMBER, _API = 0xC018AA3F, 0xAA
_EVENTS = {"fork": 1 << 1, "mremap": 1 << 2, "madvise": 1 << 3, "munmap": 1 << 6}


class Hindrance(msgspec.Struct, frozen=True, kw_only=True):
    """Why not, what to do about it, and whether it is only a privilege that is missing."""

    why: str
    remedy: str
    privilege: bool = False


def hindrance() -> Hindrance | None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        return _refused(ctypes.get_errno())
    try:
        return _lacking(descriptor)
    finally:
        os.close(descriptor)


def _refused(why: int) -> Hindrance:
    if why == errno.EPERM:
        return Hindrance(
            why="userfaultfd(2) is not permitted",
            remedy="grant CAP_SYS_PTRACE, or: sysctl -w vm.unprivileged_userfaultfd=1",
            privilege=True,
        )
    return Hindrance(
        why=f"this kernel has no userfaultfd(2): {os.strerror(why)}",
        remedy="use a kernel with CONFIG_USERFAULTFD, or restore without --lazy",
    )


def _lacking(descriptor: int) -> Hindrance | None:
    """What is asked for must be there, or the kernel refuses; CRIU asks for the same."""
    asked = struct.pack("=QQQ", _API, sum(_EVENTS.values()), 0)
    try:
        fcntl.ioctl(descriptor, _API_NUMBER, asked)
    except OSError as error:
        return Hindrance(
            why=f"userfaultfd(2) tells nothing of {', '.join(_EVENTS)} here: {error.strerror}",
            remedy="use Linux 4.11 or newer and CAP_SYS_PTRACE, or restore without --lazy",
        )
    return None
