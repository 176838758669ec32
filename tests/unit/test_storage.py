"""Sparse copies stay sparse, saved files come back whole, a checkpoint appears at once or not at all."""

import os
from pathlib import Path

import pytest

from cria.checkpoint import layout, saved_files
from cria.errors import CheckpointDamaged, CheckpointExists, NotWritable
from cria.system import files


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"in the middle")


def test_a_sparse_copy_is_equal_and_takes_no_more_room(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    make_sparse(source)

    with source.open("rb") as a, target.open("wb") as b:
        copied = files.copy_sparse(a.fileno(), b.fileno())

    assert target.read_bytes() == source.read_bytes()
    assert copied < 1 << 20
    assert target.stat().st_blocks * 512 < 1 << 20


def test_a_file_that_is_all_hole_keeps_its_size(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.touch()
    os.truncate(source, 1 << 20)

    with source.open("rb") as a, target.open("wb") as b:
        assert files.copy_sparse(a.fileno(), b.fileno()) == 0

    assert target.stat().st_size == 1 << 20


def test_only_shared_memory_and_link_remaps_are_saved() -> None:
    paths = ["/dev/shm/psm_1", "/usr/lib/x.so", "/data/link_remap.7", "/dev/shm/psm_1"]

    assert [str(p) for p in saved_files.needed(paths)] == ["/data/link_remap.7", "/dev/shm/psm_1"]


def test_saved_files_come_back_with_names_mode_and_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_files, "MEMORY_FILE_SYSTEMS", (tmp_path,))
    kept = tmp_path / "kept"
    kept.mkdir()
    segment, second_name = tmp_path / "psm", tmp_path / "also"
    make_sparse(segment)
    segment.chmod(0o640)
    os.link(segment, second_name)
    content = segment.read_bytes()

    originals = saved_files.save([segment, second_name], kept)
    saved_files.remove_originals(originals)
    assert not segment.exists()
    assert not second_name.exists()
    saved_files.put_back([o.file for o in originals], kept)

    assert len(originals) == 1
    assert segment.read_bytes() == content
    assert segment.stat().st_mode & 0o777 == 0o640
    assert second_name.stat().st_ino == segment.stat().st_ino
    assert sorted(p.name for p in tmp_path.iterdir()) == ["also", "kept", "psm"]


def test_a_leftover_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    segment = tmp_path / "psm"
    segment.write_bytes(b"dumped")
    originals = saved_files.save([segment], kept)
    segment.write_bytes(b"leftover")
    leftover = segment.stat().st_ino

    saved_files.put_back([o.file for o in originals], kept)

    assert segment.read_bytes() == b"dumped"
    assert segment.stat().st_ino != leftover


def test_a_missing_part_is_damage_and_leaves_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    segment = tmp_path / "psm"
    segment.write_bytes(b"x")
    originals = saved_files.save([segment], kept)
    saved_files.remove_originals(originals)
    (kept / originals[0].file.stored_as).unlink()

    with pytest.raises(CheckpointDamaged):
        saved_files.put_back([o.file for o in originals], kept)

    assert not segment.exists()


def test_a_checkpoint_is_private_and_published_by_name(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "checkpoint"

    staged = layout.stage(target)
    assert not target.exists()
    layout.publish(staged, target)

    assert target.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in target.parent.iterdir()] == ["checkpoint"]


def test_nothing_is_staged_over_what_exists(tmp_path: Path) -> None:
    (tmp_path / "there").symlink_to("nowhere")

    with pytest.raises(CheckpointExists):
        layout.stage(tmp_path / "there")


def test_a_parent_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NotWritable, match="checkpoint"):
        layout.stage(tmp_path / "file" / "checkpoint")


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    reader = path.open()

    files.replace_file(path, b"new")

    with reader:
        assert reader.read() == "old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_cannot_be_replaced_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()

    with pytest.raises(OSError):
        files.replace_file(tmp_path / "directory", b"new")

    assert os.listdir(tmp_path) == ["directory"]
