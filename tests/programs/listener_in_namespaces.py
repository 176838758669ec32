"""A listener and a shared file in a network namespace and on a /dev/shm of its own.

python listener_in_namespaces.py PORT
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import sys

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for failed in (
        libc.unshare(CLONE_NEWNS | CLONE_NEWNET),
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, None),
    ):
        if failed:
            sys.exit(os.strerror(ctypes.get_errno()))
    listener = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=11)
    fd = os.open("/dev/shm/inside", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4096)
    shared = mmap.mmap(fd, 4096)
    os.close(fd)
    print("ready", flush=True)
    listener.accept()
    shared.close()


if __name__ == "__main__":
    main()
