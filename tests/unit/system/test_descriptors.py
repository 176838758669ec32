"""Every descriptor is told by its kind, with what a dump has to know of it."""

import fcntl
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

from cria.model.inventory import Descriptor
from cria.system.descriptors import descriptors, with_protocols


def of(fd: int) -> Descriptor:
    return next(each for each in descriptors(os.getpid()) if each.fd == fd)


def opened(make: Callable[[], int]) -> Descriptor:
    fd = make()
    try:
        return of(fd)
    finally:
        os.close(fd)


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    assert opened(lambda: os.open(tmp_path / "file", os.O_RDONLY)).kind == "file"
    assert opened(lambda: os.open(tmp_path, os.O_RDONLY)).kind == "directory"
    assert opened(lambda: os.open(tmp_path / "fifo", os.O_RDWR)).kind == "fifo"
    assert opened(lambda: os.open("/dev/null", os.O_RDONLY)).kind == "device"
    assert opened(lambda: os.eventfd(0)).kind == "eventfd"
    assert opened(lambda: os.memfd_create("x")).kind == "memfd"
    assert opened(lambda: os.pidfd_open(os.getpid())).kind in ("pidfd", "other")


def test_a_socket_and_a_pipe_have_their_inode() -> None:
    with socket.socket() as one:
        assert of(one.fileno()).kind == "socket"
        assert of(one.fileno()).inode == os.fstat(one.fileno()).st_ino
    read, write = os.pipe()
    assert of(read).kind == "pipe"
    assert of(read).inode == of(write).inode != 0
    assert [of(read).flags, of(write).flags] == [os.O_CLOEXEC, os.O_CLOEXEC | os.O_WRONLY]
    os.close(read)
    os.close(write)


def test_an_epoll_tells_what_it_watches() -> None:
    read, write = os.pipe()
    with select.epoll() as epoll, socket.socket() as listener:
        listener.listen()
        epoll.register(read)
        epoll.register(listener.fileno())
        assert of(epoll.fileno()).watches == tuple(sorted((read, listener.fileno())))
    os.close(read)
    os.close(write)


def test_a_log_opened_for_appending_is_known_by_its_flags(tmp_path: Path) -> None:
    log = opened(lambda: os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    assert log.flags is not None and log.flags & os.O_APPEND
    assert log.path == str(tmp_path / "log")


def test_a_deleted_file_keeps_its_last_name(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert not of(fd).deleted
    path.unlink()
    assert of(fd).deleted
    assert (of(fd).path, of(fd).links) == (str(path), 0)
    os.close(fd)


def test_a_file_whose_name_ends_like_the_mark_of_deletion_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "notes (deleted)"
    found = opened(lambda: os.open(path, os.O_RDWR | os.O_CREAT))
    assert (found.deleted, found.path) == (False, str(path))


def test_a_file_that_has_another_name_left_says_so(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "one", os.O_RDWR | os.O_CREAT)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    (tmp_path / "one").unlink()
    assert (of(fd).deleted, of(fd).links) == (True, 1)
    os.close(fd)


def test_a_lock_is_told_with_its_kind(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    assert of(fd).locks == ()
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert of(fd).locks[0].startswith("FLOCK")
    os.close(fd)


def test_a_process_that_has_ended_has_none() -> None:
    assert descriptors(999999999) == ()


def test_a_socket_that_is_neither_inet_nor_unix_is_told_by_its_protocol() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink, socket.socket() as tcp:
        known = {os.fstat(tcp.fileno()).st_ino}
        found = {each.fd: each.path for each in with_protocols(descriptors(os.getpid()), known)}
        assert found[netlink.fileno()] == "NETLINK"
        assert found[tcp.fileno()] is None
