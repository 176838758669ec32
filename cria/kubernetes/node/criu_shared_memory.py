"""Save an engine's files of /dev/shm with CRIU's images, and put them into the /dev/shm of a restored container.

A pod's /dev/shm is mounted from outside its containers, so that CRIU leaves it out, and in another pod it is empty.
This file is copied to nodes for the action script: standard library only, for Python 3.9.
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

IMAGE_NAME = "cria-shared-memory.img"
SHM = "/dev/shm"
BLOCK_BYTES = 1 << 16
ZEROS = bytes(BLOCK_BYTES)

# The image: a line of JSON about all files, then for each file a line of JSON and its blocks that are not all zero.
BLOCK_HEADER = struct.Struct("<qI")  # offset and length of a block
END_OF_FILE = BLOCK_HEADER.pack(-1, 0)


def save(root: int, pids: list[int], images: str) -> int:
    """Write the files of /dev/shm that the processes `pids` use into the directory `images`. Returns their number.

    `root` is the first process of the container. Saves none where CRIU dumps /dev/shm itself, or the container shares
    it with us. As CRIU does, replaces the image of an earlier dump. Raises OSError; then there is no image.
    """
    path = f"{images}/{IMAGE_NAME}"
    with suppress(FileNotFoundError):
        os.unlink(path)
    mount_id = shm_mount_id(root)
    if mount_id is None or shares_our_mounts(root) or is_dumped_by_criu(root, images):
        return 0
    inodes = inodes_in_use(pids)
    directory = os.open(f"/proc/{root}/root{SHM}", os.O_RDONLY | os.O_DIRECTORY)
    files = names_by_inode(directory, inodes)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as image:
            image.write(json.dumps({"mount": mount_id, "files": len(files)}).encode() + b"\n")
            for names in files:
                write_file(directory, names, image)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(directory)
    return len(files)


def restore(root: int, images: str) -> int:
    """Put saved files into the container that CRIU is restoring. Returns their number. Raises OSError, ValueError.

    They replace files of the same names; a process that has those mapped keeps them.
    """
    path = f"{images}/{IMAGE_NAME}"
    if not os.path.exists(path):
        return 0
    with open(path, "rb") as image:
        header = json.loads(image.readline())
        directory = os.open(
            find_restored_mount(root, header["mount"]), os.O_RDONLY | os.O_DIRECTORY
        )
        for _ in range(header["files"]):
            read_file(directory, image)
        os.close(directory)
    return int(header["files"])


# The mount -------------------------------------------------------------------------------------


def mountinfo(root: int) -> list[list[str]]:
    """Return the fields of each mount that a process sees (proc_pid_mountinfo(5))."""
    with open(f"/proc/{root}/mountinfo") as file:
        return [line.split() for line in file]


def shm_mount_id(root: int) -> int | None:
    """Return the ID of the mount at /dev/shm, the last where several cover each other. CRIU's images have the same."""
    ids = [int(fields[0]) for fields in mountinfo(root) if fields[4] == SHM]
    return ids[-1] if ids else None


def shares_our_mounts(root: int) -> bool:
    """Return whether a process is in our own mount namespace."""
    return os.readlink(f"/proc/{root}/ns/mnt") == os.readlink("/proc/self/ns/mnt")


def is_dumped_by_criu(root: int, images: str) -> bool:
    """Return whether CRIU has packed /dev/shm: it does so with a tmpfs of the container, named for its device."""
    device = os.stat(f"/proc/{root}/root{SHM}").st_dev
    return os.path.exists(f"{images}/tmpfs-dev-{os.minor(device)}.tar.gz.img")


def find_restored_mount(root: int, mount_id: int) -> str:
    """Return where CRIU has put a mount before it builds the container's tree. Source: mount-v2.c of CRIU 4.

    Raises ValueError where it is not there.
    """
    for fields in mountinfo(root):
        if fields[4].endswith(f"/mnt-{mount_id:010d}"):
            return f"/proc/{root}/root{fields[4]}"
    raise ValueError(f"{SHM} of the container is not where CRIU puts it")


# The files -------------------------------------------------------------------------------------


def inodes_in_use(pids: list[int]) -> set[int]:
    """Return the inodes of files of /dev/shm that processes have mapped or open, also of files without a name."""
    inodes = set()
    for pid in pids:
        with open(f"/proc/{pid}/maps") as file:
            rows = (line.split(None, 5) for line in file if f" {SHM}/" in line)
            inodes |= {int(row[4]) for row in rows}
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{descriptor}"
            if os.readlink(path).startswith(f"{SHM}/"):
                inodes.add(os.stat(path).st_ino)
    return inodes


def names_by_inode(directory: int, inodes: set[int]) -> list[list[str]]:
    """Return the names of each regular file whose inode is among `inodes`.

    A file that had no name has one: CRIU links it as link_remap.N.
    """
    files: dict[int, list[str]] = {}
    for name in sorted(os.listdir(directory)):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if status.st_ino in inodes and stat.S_ISREG(status.st_mode):
            files.setdefault(status.st_ino, []).append(name)
    return list(files.values())


def write_file(directory: int, names: list[str], image: BinaryIO) -> None:
    """Add the file that has these names to the image, without zeros: an engine's rings are large and mostly empty."""
    descriptor = os.open(names[0], os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
    with open(descriptor, "rb") as source:
        status = os.fstat(descriptor)
        header: dict[str, Any] = {
            "names": names,
            "size": status.st_size,
            "mode": status.st_mode & 0o7777,
            "uid": status.st_uid,
            "gid": status.st_gid,
        }
        image.write(json.dumps(header).encode() + b"\n")
        offset = 0
        while block := source.read(BLOCK_BYTES):
            if block != ZEROS[: len(block)]:
                image.write(BLOCK_HEADER.pack(offset, len(block)) + block)
            offset += len(block)
    image.write(END_OF_FILE)


def read_file(directory: int, image: BinaryIO) -> None:
    """Make the next file of the image, then give it its names. Raises OSError, ValueError."""
    header = json.loads(image.readline())
    for name in header["names"]:
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"a file of {SHM} is called {name!r}")
    descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR, header["mode"], dir_fd=directory)
    try:
        while (block := BLOCK_HEADER.unpack(image.read(BLOCK_HEADER.size)))[0] >= 0:
            offset, length = block
            os.pwrite(descriptor, image.read(length), offset)
        os.ftruncate(descriptor, header["size"])
        os.fchown(descriptor, header["uid"], header["gid"])
        os.fchmod(descriptor, header["mode"])
        for name in header["names"]:
            link_as(directory, name, descriptor)
    finally:
        os.close(descriptor)


def link_as(directory: int, name: str, descriptor: int) -> None:
    """Give an open file a name, and take that from the file which has it."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=directory, follow_symlinks=True)
