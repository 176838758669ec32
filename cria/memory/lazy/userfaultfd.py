"""Can this host restore lazily? The kernel must have userfaultfd, with word of changed mappings, and allow it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from enum import Enum
from typing import Any

import msgspec

from cria.criu.images.memory import PAGE

# Source: asm/unistd.h of each; the others share the numbers of arm64.
_SYSCALL = {"x86_64": 323}.get(platform.machine(), 282)
_API_NUMBER, _API = 0xC018AA3F, 0xAA
_EVENTS = {"fork": 1 << 1, "mremap": 1 << 2, "madvise": 1 << 3, "munmap": 1 << 6}


class Obstacle(msgspec.Struct, frozen=True, kw_only=True):
    """Why not, what to do about it, and whether it is only a privilege that is missing."""

    why: str
    remedy: str
    privilege: bool = False


def find_obstacle() -> Obstacle | None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        return _refused(ctypes.get_errno())
    try:
        return _lacking(descriptor)
    finally:
        os.close(descriptor)


def _refused(why: int) -> Obstacle:
    if why == errno.EPERM:
        return Obstacle(
            why="userfaultfd(2) is not permitted",
            remedy="grant CAP_SYS_PTRACE, or: sysctl -w vm.unprivileged_userfaultfd=1",
            privilege=True,
        )
    return Obstacle(
        why=f"this kernel has no userfaultfd(2): {os.strerror(why)}",
        remedy="use a kernel with CONFIG_USERFAULTFD, or restore without --lazy",
    )


def _lacking(descriptor: int) -> Obstacle | None:
    """What is asked for must be there, or the kernel refuses; CRIU asks for the same."""
    asked = struct.pack("=QQQ", _API, sum(_EVENTS.values()), 0)
    try:
        fcntl.ioctl(descriptor, _API_NUMBER, asked)
    except OSError as error:
        return Obstacle(
            why=f"userfaultfd(2) tells nothing of {', '.join(_EVENTS)} here: {error.strerror}",
            remedy="use Linux 4.11 or newer and CAP_SYS_PTRACE, or restore without --lazy",
        )
    return None


FAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16

_MESSAGE = struct.Struct("=B7xQQQ")
_AT_ONCE = 64  # messages
_UNREGISTER, _WAKE = 0x8010AA01, 0x8010AA02
_NEVER_MISSING = (
    1 << 47
) - 2 * PAGE  # the end of the addresses of a process: nothing, or its stack
_COPY, _ZEROPAGE = 0xC028AA03, 0xC020AA04


class Message(msgspec.Struct, frozen=True):
    """What the kernel tells: `kind` and its words, of which each kind has its own."""

    kind: int
    first: int
    second: int
    third: int

    @property
    def address(self) -> int:
        """Of a fault: the page that is missing."""
        return self.second & -PAGE

    @property
    def descriptor(self) -> int:
        """Of a fork: the userfaultfd of the child, which is open here now."""
        return self.first & 0xFFFFFFFF


class Transfer(Enum):
    """How it went to give pages to a process."""

    NOW = "they are there, or not wanted any more"
    LATER = "its mappings are changing: hear what it says first"
    ENDED = "the process has ended"


class Userfault:
    """The userfaultfd `descriptor` of one process, opened by CRIU, non-blocking."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def messages(self) -> list[Message]:
        """What the kernel has to tell now. Whoever changed mappings goes on as soon as this is read."""
        try:
            read = os.read(self.descriptor, _AT_ONCE * _MESSAGE.size)
        except BlockingIOError:
            return []
        return [Message(*words) for words in _MESSAGE.iter_unpack(read)]

    def copy(self, start: int, source: int, size: int) -> Transfer:
        """Fill `size` bytes from `start` with those at the address `source` in this process."""
        return self._fill(start, size, lambda at, n: (_COPY, (at, source + at - start, n, 0, 0)))

    def zero(self, start: int, size: int) -> Transfer:
        """The same with zeros, which take no memory until they are written to."""
        return self._fill(start, size, lambda at, n: (_ZEROPAGE, (at, n, 0, 0)))

    def _fill(self, start: int, size: int, request: Any) -> Transfer:
        """The kernel stops at a page that is there already: that one is left as it is."""
        at, end, most = start, start + size, size
        while at < end:
            number, words = request(at, min(most, end - at))
            why, done = self._ask(number, words)
            if done > 0:
                at += done
            elif why == errno.ENOENT and most > PAGE:  # a bound of mappings lies within
                most = most // 2 & -PAGE
            elif why in (errno.EEXIST, errno.ENOENT):
                self.wake(at, PAGE)
                at += PAGE
            elif why == errno.EAGAIN:
                return Transfer.LATER
            elif why == errno.ESRCH:
                return Transfer.ENDED
            else:
                raise OSError(why, os.strerror(why), f"{end - at} bytes at {at:#x}")
        return Transfer.NOW

    def wake(self, start: int, size: int) -> None:
        """Let threads that wait for these pages look again."""
        self._ask(_WAKE, (start, size))

    def unregister(self, start: int, size: int) -> bool:
        """From now on an absent page here is a page of zeros. False when nothing is mapped there."""
        why, _ = self._ask(_UNREGISTER, (start, size))
        if why in (errno.EINVAL, errno.ENOMEM, errno.ENOENT):
            return False
        if why:
            raise OSError(why, os.strerror(why), f"{size} bytes at {start:#x}")
        return True

    def is_over(self) -> bool:
        """Whether the memory it is about is gone. Asked by a request that can change nothing."""
        why, _ = self._ask(_ZEROPAGE, (_NEVER_MISSING, PAGE, 0, 0))
        return why == errno.ESRCH

    def close(self) -> None:
        os.close(self.descriptor)

    def _ask(self, number: int, words: tuple[int, ...]) -> tuple[int, int]:
        """The errno, 0 if there was none, and what the kernel wrote in the last word."""
        told = bytearray(struct.pack(f"={len(words)}Q", *words))
        why = 0
        try:
            fcntl.ioctl(self.descriptor, number, told, True)
        except OSError as error:
            why = error.errno or 0
        return why, struct.unpack_from("=q", told, len(told) - 8)[0]
