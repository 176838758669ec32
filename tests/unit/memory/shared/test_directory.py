"""The directory of backing stores is private, seen by clones, and contains only what cria may remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.errors import CannotShare, NotWritable
from cria.memory.shared import directory as directories

KEY = "0123456789abcdef" * 2


def test_a_directory_is_private_and_tagged_for_backup_programs(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints" / ".qwen.shared"
    directories.prepare(directory)
    directories.prepare(directory)

    assert directory.stat().st_mode & 0o777 == 0o700
    assert (
        (directory / "CACHEDIR.TAG")
        .read_text()
        .startswith("Signature: 8a477f597d28d172789f06886806bc55")
    )


def test_a_directory_that_others_may_reach_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir(mode=0o755)

    with pytest.raises(CannotShare) as refused:
        directories.prepare(directory)

    assert "mode 755" in str(refused.value.details)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    with pytest.raises(CannotShare):
        directories.prepare(tmp_path / "link")

    assert not list((tmp_path / "real").iterdir())


def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotWritable) as refused:
        directories.prepare(tmp_path / "file" / "below")

    assert str(tmp_path / "file") in refused.value.message


def test_dev_shm_is_refused() -> None:
    with pytest.raises(CannotShare) as refused:
        directories.prepare(Path("/dev/shm/cria-no-such"))

    assert not Path("/dev/shm/cria-no-such").exists()
    assert refused.value.remedy == "name another directory: --share-in DIR"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/checkpoints/.qwen.shared/{KEY}/123.mem", True),
        (f"/.qwen.shared/{KEY}/123.mem (deleted)", True),
        (f"/checkpoints/{KEY}/123.memory", False),
        ("/checkpoints/123.mem", False),
        (f"/checkpoints/{KEY[1:]}/1.mem", False),
    ],
)
def test_a_shared_file_is_recognized_by_its_path(path: str, expected: bool) -> None:
    assert directories.is_shared_file(path) is expected


def test_a_process_that_maps_a_file_is_found(tmp_path: Path) -> None:
    line = "7f00-7f01 rw-p 00000000 fe:00 12345 "
    for pid, path in ((1, "/usr/lib/libc.so.6"), (7, f"/c/.q.shared/{KEY}/3.mem")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "maps").write_text(line + path + "\n")
    (tmp_path / "9").mkdir()  # a process that has just ended

    assert directories.keys_in_use(tmp_path) == {KEY: 7}


def test_only_backing_stores_are_removed(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directories.prepare(directory)
    kept = [directory / "notes", directory / KEY, directory / f"{KEY[::-1]}"]
    for path in kept[:2]:
        path.mkdir()
    kept[2].symlink_to(tmp_path)
    kept += [
        directory / KEY.replace("0", "e"),
        directory / f"{KEY}{KEY}",
    ]  # a digest may look like a key
    for path in kept[3:]:
        path.mkdir()
    build_store(directory / KEY.replace("0", "f"))

    directories.remove_unused(directory, KEY)

    assert all(entry.exists() for entry in kept)
    assert not (directory / KEY.replace("0", "f")).exists()


def build_store(path: Path) -> None:
    path.mkdir()
    (path / directories.DESCRIPTION).write_text("{}")


def test_other_files_in_the_directory_stay_when_all_stores_are_removed(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    assert directories.remove(directory) == 0
    directories.prepare(directory)
    (directory / "qwen").mkdir()
    (directory / "lock").write_text("of the user")
    assert directories.remove(directory) == 0
    build_store(directory / KEY)
    (directory / f"{KEY}.partial").mkdir()

    directories.remove(directory)

    assert sorted(entry.name for entry in directory.iterdir()) == ["CACHEDIR.TAG", "lock", "qwen"]
    (directory / "qwen").rmdir()
    build_store(directory / KEY)
    directories.remove(directory)
    assert not directory.exists()
