"""Keep an engine's files of /dev/shm with CRIU's images, and put them into the /dev/shm of a restored container.

A pod's /dev/shm is a mount from outside its containers, which CRIU leaves out, and a copy in another pod
has an empty one. This runs beside the action script, so it needs nothing but Python 3.9.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

NAME = "cria-shared-memory.img"
PLACE = "/dev/shm"
BLOCK = 1 << 16
ZEROS = bytes(BLOCK)
HEAD = struct.Struct("<qI")  # offset and length of a block; the offset -1 ends a file
END = HEAD.pack(-1, 0)


def keep(root: int, tree: list[int], images: str) -> int:
    """Write what the tree of `root` uses of /dev/shm into the directory of images; returns the number of files.

    None where CRIU dumps /dev/shm itself, or the tree shares it with us. CRIU overwrites the images of an
    earlier dump, and so do we. Raises OSError; then there is no such file.
    """
    path = f"{images}/{NAME}"
    with suppress(FileNotFoundError):
        os.unlink(path)
    mount = mount_of(root)
    if mount is None or same_mounts(root) or dumped_by_criu(root, images):
        return 0
    used = used_files(tree)
    directory = os.open(f"/proc/{root}/root{PLACE}", os.O_RDONLY | os.O_DIRECTORY)
    files = by_inode(directory, used)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as out:
            out.write(json.dumps({"mount": mount, "files": len(files)}).encode() + b"\n")
            for names in files:
                store(directory, names, out)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(directory)
    return len(files)


def put_back(root: int, images: str) -> int:
    """Put the files into the container that is being restored; returns their number. Raises OSError, ValueError.

    They take the place of those of the same names: whoever has these mapped keeps them.
    """
    path = f"{images}/{NAME}"
    if not os.path.exists(path):
        return 0
    with open(path, "rb") as source:
        about = json.loads(source.readline())
        directory = os.open(in_the_making(root, about["mount"]), os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(about["files"]):
            load(directory, source)
        os.close(directory)
    return int(about["files"])


# Where ------------------------------------------------------------------------------------------


def mounts(root: int) -> list[list[str]]:
    with open(f"/proc/{root}/mountinfo") as file:
        return [line.split() for line in file]


def mount_of(root: int) -> int | None:
    """The ID of what is mounted on /dev/shm, as CRIU's images have it."""
    found = [int(words[0]) for words in mounts(root) if words[4] == PLACE]
    return found[-1] if found else None


def same_mounts(root: int) -> bool:
    return os.readlink(f"/proc/{root}/ns/mnt") == os.readlink("/proc/self/ns/mnt")


def dumped_by_criu(root: int, images: str) -> bool:
    """CRIU packs a tmpfs that is the container's own, and names the image for its device."""
    device = os.stat(f"/proc/{root}/root{PLACE}").st_dev
    return os.path.exists(f"{images}/tmpfs-dev-{os.minor(device)}.tar.gz.img")


def in_the_making(root: int, mount: int) -> str:
    """Where CRIU has put that mount before it builds the container's tree (its mount-v2.c)."""
    for words in mounts(root):
        if words[4].endswith(f"/mnt-{mount:010d}"):
            return f"/proc/{root}/root{words[4]}"
    raise ValueError(f"{PLACE} of the container is not where CRIU puts it")


# What -------------------------------------------------------------------------------------------


def used_files(tree: list[int]) -> set[int]:
    """The inodes of files of /dev/shm that processes have mapped or open, also of those without a name."""
    used = set()
    for pid in tree:
        with open(f"/proc/{pid}/maps") as file:
            rows = (line.split(None, 5) for line in file if f" {PLACE}/" in line)
            used |= {int(row[4]) for row in rows}
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{descriptor}"
            if os.readlink(path).startswith(f"{PLACE}/"):
                used.add(os.stat(path).st_ino)
    return used


def by_inode(directory: int, used: set[int]) -> list[list[str]]:
    """The names of each regular file that is used; CRIU gave one to those that had none."""
    files: dict[int, list[str]] = {}
    for name in sorted(os.listdir(directory)):
        about = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if about.st_ino in used and stat.S_ISREG(about.st_mode):
            files.setdefault(about.st_ino, []).append(name)
    return list(files.values())


def store(directory: int, names: list[str], out: BinaryIO) -> None:
    """Without the blocks that are all zero: an engine's rings are large and mostly empty."""
    handle = os.open(names[0], os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
    with open(handle, "rb") as source:
        about = os.fstat(handle)
        facts: dict[str, Any] = {
            "names": names,
            "size": about.st_size,
            "mode": about.st_mode & 0o7777,
        }
        facts |= {"uid": about.st_uid, "gid": about.st_gid}
        out.write(json.dumps(facts).encode() + b"\n")
        offset = 0
        while block := source.read(BLOCK):
            if block != ZEROS[: len(block)]:
                out.write(HEAD.pack(offset, len(block)) + block)
            offset += len(block)
    out.write(END)


def load(directory: int, source: BinaryIO) -> None:
    about = json.loads(source.readline())
    for name in about["names"]:
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"a file of {PLACE} is called {name!r}")
    handle = os.open(".", os.O_TMPFILE | os.O_RDWR, about["mode"], dir_fd=directory)
    try:
        while (head := HEAD.unpack(source.read(HEAD.size)))[0] >= 0:
            os.pwrite(handle, source.read(head[1]), head[0])
        os.ftruncate(handle, about["size"])
        os.fchown(handle, about["uid"], about["gid"])
        os.fchmod(handle, about["mode"])
        for name in about["names"]:
            take_place(directory, name, handle)
    finally:
        os.close(handle)


def take_place(directory: int, name: str, handle: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    os.link(f"/proc/self/fd/{handle}", name, dst_dir_fd=directory, follow_symlinks=True)
