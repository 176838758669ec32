"""Where shared memory lies: private, not where clones do not look, and known again by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.errors import CannotShare, NotWritable
from cria.memory.shared import directory as place

KEY = "0123456789abcdef" * 2


def test_a_place_is_made_private_and_told_to_backup_programs(tmp_path: Path) -> None:
    there = tmp_path / "checkpoints" / ".qwen.shared"
    place.prepare(there)
    place.prepare(there)

    assert there.stat().st_mode & 0o777 == 0o700
    assert (
        (there / "CACHEDIR.TAG")
        .read_text()
        .startswith("Signature: 8a477f597d28d172789f06886806bc55")
    )


def test_a_place_that_others_may_reach_is_refused(tmp_path: Path) -> None:
    there = tmp_path / "open"
    there.mkdir(mode=0o755)

    with pytest.raises(CannotShare) as refused:
        place.prepare(there)

    assert "mode 755" in str(refused.value.details)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    with pytest.raises(CannotShare):
        place.prepare(tmp_path / "link")

    assert not list((tmp_path / "real").iterdir())


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotWritable) as refused:
        place.prepare(tmp_path / "file" / "below")

    assert str(tmp_path / "file") in refused.value.message


def test_memory_of_the_host_that_clones_do_not_see_is_refused() -> None:
    with pytest.raises(CannotShare) as refused:
        place.prepare(Path("/dev/shm/cria-no-such"))

    assert not Path("/dev/shm/cria-no-such").exists()
    assert refused.value.remedy == "name another directory: --share-in DIR"


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        (f"/checkpoints/.qwen.shared/{KEY}/123.mem", True),
        (f"/.qwen.shared/{KEY}/123.mem (deleted)", True),
        (f"/checkpoints/{KEY}/123.memory", False),
        ("/checkpoints/123.mem", False),
        (f"/checkpoints/{KEY[1:]}/1.mem", False),
    ],
)
def test_a_file_is_known_by_its_name(path: str, ours: bool) -> None:
    assert place.is_shared_file(path) is ours


def test_who_has_a_file_mapped_is_found(tmp_path: Path) -> None:
    line = "7f00-7f01 rw-p 00000000 fe:00 12345 "
    for pid, path in ((1, "/usr/lib/libc.so.6"), (7, f"/c/.q.shared/{KEY}/3.mem")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "maps").write_text(line + path + "\n")
    (tmp_path / "9").mkdir()  # it has just ended

    assert place.keys_in_use(tmp_path) == {KEY: 7}


def test_what_nobody_made_here_is_not_removed(tmp_path: Path) -> None:
    there = tmp_path / "there"
    place.prepare(there)
    kept = [there / "notes", there / KEY, there / f"{KEY[::-1]}"]
    for directory in kept[:2]:
        directory.mkdir()
    kept[2].symlink_to(tmp_path)
    kept += [there / KEY.replace("0", "e"), there / f"{KEY}{KEY}"]  # a digest may look like a key
    for directory in kept[3:]:
        directory.mkdir()
    made(there / KEY.replace("0", "f"))

    place.remove_unused(there, KEY)

    assert all(entry.exists() for entry in kept)
    assert not (there / KEY.replace("0", "f")).exists()


def made(directory: Path) -> Path:
    directory.mkdir()
    (directory / place.DESCRIPTION).write_text("{}")
    return directory


def test_what_else_lies_in_a_named_directory_stays_when_all_is_removed(tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert place.remove(there) == 0
    place.prepare(there)
    (there / "qwen").mkdir()
    (there / "lock").write_text("somebody's")
    assert place.remove(there) == 0
    made(there / KEY)
    (there / f"{KEY}.partial").mkdir()

    place.remove(there)

    assert sorted(entry.name for entry in there.iterdir()) == ["CACHEDIR.TAG", "lock", "qwen"]
    (there / "qwen").rmdir()
    made(there / KEY)
    place.remove(there)
    assert not there.exists()
