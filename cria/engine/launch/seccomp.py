"""A seccomp filter that makes io_uring look absent, so that libuv falls back to epoll.

CRIU cannot dump an io_uring ring, uvloop's libuv makes one wherever the kernel has them, and no
environment variable stops it (libuv 1.50 and later). The filter is inherited by every child, and
CRIU dumps and restores it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

IO_URING_SETUP = 425  # the same number on every architecture that vLLM runs on
X32_BIT = 0x40000000  # x86-64 kernels may take the same call under this number too

# Source: include/uapi/linux/{filter,bpf_common,seccomp,prctl}.h.
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def _instruction(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, value)


FILTER = b"".join(
    (
        _instruction(_LOAD_WORD, 0, 0, 0),  # load seccomp_data.nr, the number of the call
        _instruction(_JUMP_IF_EQUAL, 2, 0, IO_URING_SETUP),  # io_uring_setup: over two, to ENOSYS
        _instruction(
            _JUMP_IF_EQUAL, 1, 0, IO_URING_SETUP | X32_BIT
        ),  # the same call of the x32 ABI
        _instruction(_RETURN, 0, 0, _ALLOW),  # every other call goes through
        _instruction(_RETURN, 0, 0, _ERRNO | errno.ENOSYS),  # "this kernel has no io_uring"
    )
)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def hide_io_uring() -> None:
    """Install the filter in this process, for good and for all its children. Raises OSError.

    Gaining privileges by exec (setuid programs) is given up with it; the kernel asks for that.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(FILTER) // 8, FILTER)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
