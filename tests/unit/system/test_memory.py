"""Shared memory is found under whatever name it has left; zero pages are estimated, not guessed."""

import mmap
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cria.model.inventory import SharedFile
from cria.system.descriptors import descriptors
from cria.system.memory import areas, mappings, shared_files, with_zeros
from cria.system.procfs import tree

SHM = Path("/dev/shm")
HALF_ZERO = """
import mmap, os
size = 32 << 20
full = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
empty = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 4096):
    full[at] = 1
    empty[at] = 0
print("ready", flush=True)
input()
"""


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"cria-test-{uuid.uuid4()}"
    yield chosen
    for path in SHM.glob(f"{chosen}*"):
        path.unlink()


def found(name: str) -> list[SharedFile]:
    pid = os.getpid()
    files = shared_files(mappings(pid), descriptors(pid))
    return [file for file in files if name in file.name]


def mapped(name: str, size: int) -> mmap.mmap:
    fd = os.open(SHM / name, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, size)
    view = mmap.mmap(fd, size)
    os.close(fd)
    return view


def test_a_mapped_file_is_told_with_its_size_and_what_it_really_takes(name: str) -> None:
    view = mapped(name, 1 << 20)
    view[0] = 1
    (file,) = found(name)
    assert (file.path, file.size_bytes) == (f"/dev/shm/{name}", 1 << 20)
    assert file.allocated_bytes == mmap.PAGESIZE
    assert file.pids == (os.getpid(),)
    assert file.inode == (SHM / name).stat().st_ino
    view.close()


def test_a_file_held_open_and_not_mapped_is_found(name: str) -> None:
    fd = os.open(SHM / name, os.O_RDWR | os.O_CREAT)
    assert [file.path for file in found(name)] == [f"/dev/shm/{name}"]
    os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is told of files without a name")
def test_a_file_without_a_name_is_found_by_its_mapping(name: str) -> None:
    view = mapped(name, 8192)
    (SHM / name).unlink()
    (file,) = found(name)
    assert (file.path, file.name, file.size_bytes) == (None, f"/dev/shm/{name}", 8192)
    view.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is told of files without a name")
def test_the_name_that_is_left_is_found_as_for_a_semaphore_of_glibc(name: str) -> None:
    view = mapped(name, 4096)
    (SHM / f"{name}-real").hardlink_to(SHM / name)
    (SHM / name).unlink()
    assert [file.path for file in found(name)] == [f"/dev/shm/{name}-real"]
    view.close()


def test_a_file_of_two_users_is_one_file(name: str) -> None:
    view = mapped(name, 4096)
    fd = os.open(SHM / name, os.O_RDWR)
    assert len(found(name)) == 1
    os.close(fd)
    view.close()


def test_only_mappings_with_anonymous_pages_count() -> None:
    smaps = """\
55d8c0000000-55d8c0002000 r--p 00000000 fe:00 1   /usr/bin/x
Rss:                   8 kB
Anonymous:             0 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Rss:                1024 kB
Anonymous:           512 kB
VmFlags: rd wr
"""
    (area,) = areas(smaps)
    assert (area.end - area.start, area.anonymous) == (1 << 20, 512 << 10)


def test_zero_pages_are_estimated_within_a_tenth() -> None:
    words = [sys.executable, "-c", HALF_ZERO]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        root = with_zeros(tree(process.pid)[0])
        process.stdin.close()
    zero = root.memory.zero
    assert zero is not None
    assert abs(zero - (32 << 20)) < 4 << 20
    assert root.memory.sampled_pages > 500
