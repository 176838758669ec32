"""userfaultfd(2): whether this host allows it, and the userfaultfd of one process."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Callable
from enum import Enum

import msgspec

from cria.criu.images.memory import PAGE

# Source: asm/unistd.h of each machine; all others have the numbers of arm64.
_SYSCALL = {"x86_64": 323}.get(platform.machine(), 282)

# Source: include/uapi/linux/userfaultfd.h.
_UFFD_API = 0xAA
_UFFDIO_API, _UFFDIO_UNREGISTER, _UFFDIO_WAKE = 0xC018AA3F, 0x8010AA01, 0x8010AA02
_UFFDIO_COPY, _UFFDIO_ZEROPAGE = 0xC028AA03, 0xC020AA04
_FEATURES = {"fork": 1 << 1, "mremap": 1 << 2, "madvise": 1 << 3, "munmap": 1 << 6}
PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16

_MESSAGE = struct.Struct("=B7xQQQ")
_MESSAGES = 64  # read at a time
# The highest address of a process has no mapping, or belongs to its stack: no page is ever missing there.
_NEVER_MISSING = (1 << 47) - 2 * PAGE


class Obstacle(msgspec.Struct, frozen=True, kw_only=True):
    """Why this host cannot restore lazily; `privilege` says that only a privilege is missing."""

    why: str
    remedy: str
    privilege: bool = False


def find_obstacle() -> Obstacle | None:
    """Return what prevents a lazy restore on this host, or None.

    The kernel must have userfaultfd(2) with events for changed mappings, and must allow its use.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        return _refused(ctypes.get_errno())
    try:
        return _missing_features(descriptor)
    finally:
        os.close(descriptor)


def _refused(error_number: int) -> Obstacle:
    if error_number == errno.EPERM:
        return Obstacle(
            why="userfaultfd(2) is not permitted",
            remedy="grant CAP_SYS_PTRACE, or: sysctl -w vm.unprivileged_userfaultfd=1",
            privilege=True,
        )
    return Obstacle(
        why=f"this kernel has no userfaultfd(2): {os.strerror(error_number)}",
        remedy="use a kernel with CONFIG_USERFAULTFD, or restore without --lazy",
    )


def _missing_features(descriptor: int) -> Obstacle | None:
    """Ask for the features that CRIU asks for: the kernel refuses when it lacks one."""
    request = struct.pack("=QQQ", _UFFD_API, sum(_FEATURES.values()), 0)
    try:
        fcntl.ioctl(descriptor, _UFFDIO_API, request)
    except OSError as error:
        return Obstacle(
            why=f"userfaultfd(2) reports no {', '.join(_FEATURES)} here: {error.strerror}",
            remedy="use Linux 4.11 or newer and CAP_SYS_PTRACE, or restore without --lazy",
        )
    return None


class Message(msgspec.Struct, frozen=True):
    """A message of the kernel: what `first` to `third` mean depends on `kind` (struct uffd_msg)."""

    kind: int
    first: int
    second: int
    third: int

    @property
    def address(self) -> int:
        """The address of the missing page, of a PAGEFAULT."""
        return self.second & -PAGE

    @property
    def descriptor(self) -> int:
        """The userfaultfd of the child, which is open in this process now, of a FORK."""
        return self.first & 0xFFFFFFFF


class Transfer(Enum):
    """How an attempt to load pages into a process ended."""

    DONE = "the pages are there, or their mapping is gone"
    RETRY = "the mappings of the process are changing: read its messages first"
    PROCESS_ENDED = "the process has ended"


_Request = tuple[int, tuple[int, ...]]  # the number of an ioctl and the fields of its argument


class Userfaultfd:
    """The userfaultfd of one process, opened by CRIU and non-blocking."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def messages(self) -> list[Message]:
        """Read what the kernel reports. A thread that changes mappings goes on as soon as this is read."""
        try:
            content = os.read(self.descriptor, _MESSAGES * _MESSAGE.size)
        except BlockingIOError:
            return []
        return [Message(*fields) for fields in _MESSAGE.iter_unpack(content)]

    def copy(self, start: int, source: int, size: int) -> Transfer:
        """Load `size` bytes at `start` from the address `source` in this process."""
        return self._load(
            start,
            size,
            lambda address, count: (_UFFDIO_COPY, (address, source + address - start, count, 0, 0)),
        )

    def zero(self, start: int, size: int) -> Transfer:
        """Load `size` zero bytes at `start`; they take no memory until the process writes to them."""
        return self._load(
            start, size, lambda address, count: (_UFFDIO_ZEROPAGE, (address, count, 0, 0))
        )

    def _load(self, start: int, size: int, request: Callable[[int, int], _Request]) -> Transfer:
        """Load pages in as few calls as possible; a page that is there already stays as it is."""
        address, end, most = start, start + size, size
        while address < end:
            error_number, done = self._ioctl(*request(address, min(most, end - address)))
            if done > 0:
                address += done
            elif error_number == errno.ENOENT and most > PAGE:  # a mapping ends within the range
                most = most // 2 & -PAGE
            elif error_number in (errno.EEXIST, errno.ENOENT):
                self.wake(address, PAGE)
                address += PAGE
            elif error_number == errno.EAGAIN:
                return Transfer.RETRY
            elif error_number == errno.ESRCH:
                return Transfer.PROCESS_ENDED
            else:
                raise OSError(
                    error_number,
                    os.strerror(error_number),
                    f"{end - address} bytes at {address:#x}",
                )
        return Transfer.DONE

    def wake(self, start: int, size: int) -> None:
        """Let threads that wait for these pages try again."""
        self._ioctl(_UFFDIO_WAKE, (start, size))

    def unregister(self, start: int, size: int) -> bool:
        """Let absent pages of this range read as zero. Returns False where nothing is mapped there."""
        error_number, _ = self._ioctl(_UFFDIO_UNREGISTER, (start, size))
        if error_number in (errno.EINVAL, errno.ENOMEM, errno.ENOENT):
            return False
        if error_number:
            raise OSError(error_number, os.strerror(error_number), f"{size} bytes at {start:#x}")
        return True

    def process_has_ended(self) -> bool:
        """Whether the process is gone, by a request that changes nothing."""
        error_number, _ = self._ioctl(_UFFDIO_ZEROPAGE, (_NEVER_MISSING, PAGE, 0, 0))
        return error_number == errno.ESRCH

    def close(self) -> None:
        os.close(self.descriptor)

    def _ioctl(self, number: int, fields: tuple[int, ...]) -> tuple[int, int]:
        """Return errno, or 0, and what the kernel wrote into the last field."""
        argument = bytearray(struct.pack(f"={len(fields)}Q", *fields))
        error_number = 0
        try:
            fcntl.ioctl(self.descriptor, number, argument, True)
        except OSError as error:
            error_number = error.errno or 0
        return error_number, struct.unpack_from("=q", argument, len(argument) - 8)[0]
