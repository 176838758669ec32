"""Root follows no link of a stranger, and does nothing for a user that the user could not do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cria.checkpoint import saved_files
from cria.errors import DumpFailed, NotWritable
from cria.system.paths import place_of

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run `make test` as root")


def link_of(uid: int, path: Path, target: Path) -> None:
    path.symlink_to(target)
    os.chown(path, uid, uid, follow_symlinks=False)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of the user nobody."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    return directory


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of root with a file of root."""
    directory = tmp_path / "victim"
    directory.mkdir()
    (directory / "passwd").write_text("secret")
    (directory / "passwd").chmod(0o600)
    return directory


@pytest.fixture
def into(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "saved"
    directory.mkdir()
    yield directory


def test_a_link_of_a_stranger_on_the_way_is_not_followed(theirs: Path, victim: Path) -> None:
    link_of(NOBODY, theirs / "mine", victim)

    with pytest.raises(PermissionError), place_of(theirs / "mine" / "passwd"):
        pass


def test_the_last_component_is_never_followed(theirs: Path, victim: Path) -> None:
    link_of(0, theirs / "passwd", victim / "passwd")

    with place_of(theirs / "passwd") as place, pytest.raises(OSError, match="symbolic"):
        place.open(os.O_RDONLY)


def test_a_link_of_root_is_followed_below_the_root_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "file").write_text("inside")
    (tmp_path / "link").symlink_to("/etc")

    with place_of("/link/file", root=tmp_path) as place:
        descriptor, _ = place.open_regular()

    assert os.read(descriptor, 10) == b"inside"
    os.close(descriptor)


def test_dots_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()

    with place_of("/../../../inside/x", root=tmp_path) as place:
        assert os.fstat(place.directory).st_ino == (tmp_path / "inside").stat().st_ino


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    with place_of(tmp_path / "fifo") as place, pytest.raises(OSError, match="not a regular file"):
        place.open_regular()


def test_a_file_of_somebody_else_is_not_saved(theirs: Path, victim: Path, into: Path) -> None:
    os.link(victim / "passwd", theirs / "vllm_dist_0")

    with pytest.raises(DumpFailed, match="could not be saved"):
        saved_files.save([theirs / "vllm_dist_0"], into, uids={NOBODY})

    assert list(into.iterdir()) == []


def test_nothing_is_put_where_its_owner_could_not_write(
    theirs: Path, victim: Path, into: Path
) -> None:
    """Between a dump and its restore the user puts a link to a directory of root in the way."""
    (theirs / "sub").mkdir()
    os.chown(theirs / "sub", NOBODY, NOBODY)
    segment = theirs / "sub" / "psm"
    segment.write_text("content of the user")
    os.chown(segment, NOBODY, NOBODY)
    (original,) = saved_files.save([segment], into, uids={NOBODY})
    segment.unlink()
    (theirs / "sub").rmdir()
    link_of(NOBODY, theirs / "sub", victim)

    with pytest.raises(NotWritable, match="cannot be put back"):
        saved_files.put_back([original.file], into)

    assert sorted(path.name for path in victim.iterdir()) == ["passwd"]


def test_a_directory_that_its_user_has_linked_elsewhere_of_theirs_is_used(
    theirs: Path, tmp_path: Path, into: Path
) -> None:
    """A TMPDIR that leads to another disk is ordinary."""
    disk = tmp_path / "disk"
    disk.mkdir()
    os.chown(disk, NOBODY, NOBODY)
    link_of(NOBODY, theirs / "tmp", disk)
    (disk / "store").write_text("x")
    os.chown(disk / "store", NOBODY, NOBODY)
    (original,) = saved_files.save([theirs / "tmp" / "store"], into, uids={NOBODY})
    (disk / "store").unlink()

    saved_files.put_back([original.file], into)

    assert (disk / "store").read_text() == "x"
    assert (disk / "store").stat().st_uid == NOBODY


def test_what_somebody_put_in_the_place_of_a_file_since_is_not_removed(
    tmp_path: Path, into: Path
) -> None:
    path = tmp_path / "psm"
    path.write_text("ours")
    (original,) = saved_files.save([path], into)
    path.rename(tmp_path / "aside")
    path.write_text("another's")

    saved_files.remove_originals([original])

    assert path.read_text() == "another's"


def test_another_name_of_a_file_that_lost_its_own_is_the_user_s(tmp_path: Path, into: Path) -> None:
    """`ln log log.1; rm log`: CRIU remaps the file, and log.1 stays what it is."""
    log = tmp_path / "log.1"
    log.write_text("lines")
    remap = tmp_path / "link_remap.7"
    os.link(log, remap)

    (original,) = saved_files.save([remap], into)
    saved_files.remove_originals([original])
    saved_files.put_back([original.file], into)

    assert original.file.names == ()
    assert log.read_text() == "lines"
