"""What is removed after an engine is the engine's own: whoever exchanges a path meanwhile gains nothing by it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cria.engine.files import existing
from cria.engine.handle import clean_up
from cria.model.inventory import Holder, Inventory, SharedFile, UnixSocket
from tests.unit.checks.builders import inventory, process

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run `make test` as root")


def ended(uid: int, **parts: object) -> Inventory:
    """The inventory of an engine of the user `uid` in this mount namespace."""
    mount = {"mnt": Path("/proc/self/ns/mnt").stat().st_ino}
    root = msgspec.structs.replace(process(os.getpid()), uid=uid, namespaces=mount)
    return msgspec.structs.replace(inventory(root), **parts)


def listener(path: Path) -> UnixSocket:
    return UnixSocket(
        kind="stream", state="LISTEN", path=str(path), inode=1, holders=(Holder(pid=10, fd=3),)
    )


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    return directory


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    """A socket path that no process listens on any more."""
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    yield path


def test_a_socket_path_that_was_left_behind_is_removed(bound: Path) -> None:
    clean_up(ended(0, unix_sockets=(listener(bound),)))

    assert not bound.exists()


def test_a_directory_that_became_a_link_to_root_s_is_left_alone(
    theirs: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "passwd").write_text("root's")
    (theirs / "mine").symlink_to(victim)
    os.chown(theirs / "mine", NOBODY, NOBODY, follow_symlinks=False)

    clean_up(ended(NOBODY, unix_sockets=(listener(theirs / "mine" / "passwd"),)))

    assert (victim / "passwd").read_text() == "root's"


def test_what_is_no_socket_is_not_removed_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")

    clean_up(ended(0, unix_sockets=(listener(tmp_path / "file"),)))

    assert (tmp_path / "file").exists()


def test_a_path_that_another_engine_listens_on_since_stays(bound: Path) -> None:
    bound.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(bound))
        successor.listen()

        clean_up(ended(0, unix_sockets=(listener(bound),)))

        assert bound.exists()


def test_shared_memory_that_is_another_file_by_now_stays(tmp_path: Path) -> None:
    path = tmp_path / "psm_1"
    path.write_text("another's")
    status = path.stat()
    file = SharedFile(
        path=str(path),
        device=status.st_dev,
        inode=status.st_ino + 1,
        size_bytes=9,
        allocated_bytes=9,
    )

    clean_up(ended(0, shared_files=(file,)))

    assert path.exists()


@pytest.mark.parametrize("name", ["vllm_dist_" + "0" * 32, "passwd"])
def test_an_engine_cannot_name_somebody_else_s_file_as_its_store(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("secret")
    path.chmod(0o600)
    found = ended(NOBODY)

    assert existing(found, [str(path)], Path("/proc")) == ()
