"""Files of /dev/shm are saved with CRIU's images and come back with all their names, and nowhere else."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from cria.kubernetes.node import criu_shared_memory as shared


def directory(path: Path) -> int:
    path.mkdir(exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def save(source: Path) -> io.BytesIO:
    """Save all files of a directory, as into an image."""
    opened = directory(source)
    image = io.BytesIO()
    inodes = {path.stat().st_ino for path in source.iterdir()}
    for names in shared.names_by_inode(opened, inodes):
        shared.write_file(opened, names, image)
    os.close(opened)
    image.seek(0)
    return image


def restore(image: io.BytesIO, target: Path) -> None:
    opened = directory(target)
    try:
        while image.tell() < len(image.getvalue()):
            shared.read_file(opened, image)
    finally:
        os.close(opened)


@pytest.mark.parametrize(
    "size", [0, 1, shared.BLOCK_BYTES, shared.BLOCK_BYTES + 1, 40 * shared.BLOCK_BYTES]
)
def test_a_file_comes_back_whole_and_its_zeros_take_no_space(tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "psm").write_bytes(bytes(size))
    if size:
        with (source / "psm").open("r+b") as file:
            file.seek(size - 1)
            file.write(b"x")
    (source / "psm").chmod(0o640)

    image = save(source)
    restore(image, tmp_path / "target")

    restored = tmp_path / "target" / "psm"
    assert restored.read_bytes() == (source / "psm").read_bytes()
    assert restored.stat().st_mode & 0o7777 == 0o640
    assert len(image.getvalue()) < 2 * shared.BLOCK_BYTES


def test_a_file_with_two_names_comes_back_as_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "sem.a").write_text("1")
    (source / "link_remap.1").hardlink_to(source / "sem.a")

    restore(save(source), tmp_path / "target")

    target = tmp_path / "target"
    assert (target / "sem.a").samefile(target / "link_remap.1")


def test_a_file_or_link_of_the_same_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("psm", "link"):
        (source / name).write_text("new")
    (tmp_path / "victim").write_text("safe")
    (target / "link").symlink_to(tmp_path / "victim")
    (target / "psm").write_text("of an engine that runs")
    mapped = (target / "psm").open()

    restore(save(source), target)

    assert (target / "link").read_text() == (target / "psm").read_text() == "new"
    assert not (target / "link").is_symlink()
    assert (tmp_path / "victim").read_text() == "safe"
    with mapped:
        assert mapped.read() == "of an engine that runs"


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "..", ""])
def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    about = {"names": [name], "size": 0, "mode": 0o600, "uid": 0, "gid": 0}
    image = io.BytesIO(json.dumps(about).encode() + b"\n" + shared.END_OF_FILE)

    with pytest.raises(ValueError, match="a file of /dev/shm is called"):
        restore(image, tmp_path / "target")

    assert not (tmp_path / "escape").exists()


def test_an_image_of_an_earlier_dump_is_replaced_and_a_failed_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / shared.IMAGE_NAME
    for name in ("shares_our_mounts", "is_dumped_by_criu"):
        monkeypatch.setattr(shared, name, lambda *_: False)
    monkeypatch.setattr(shared, "shm_mount_id", lambda _root: 7)
    monkeypatch.setattr(shared, "inodes_in_use", lambda _pids: set())
    stale.write_text("of an earlier dump")

    assert shared.save(os.getpid(), [], str(tmp_path)) == 0
    assert b"earlier" not in stale.read_bytes()

    monkeypatch.setattr(shared, "names_by_inode", lambda *_: [["no-such-file"]])
    with pytest.raises(FileNotFoundError):
        shared.save(os.getpid(), [], str(tmp_path))
    assert not stale.exists()
