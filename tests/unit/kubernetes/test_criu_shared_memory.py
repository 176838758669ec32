"""Files of /dev/shm beside CRIU's images: whole, small, with all their names, and nowhere else."""

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


def kept(source: Path) -> io.BytesIO:
    """All files of a directory, as they lie beside the images."""
    opened = directory(source)
    out = io.BytesIO()
    used = {path.stat().st_ino for path in source.iterdir()}
    for names in shared.by_inode(opened, used):
        shared.store(opened, names, out)
    os.close(opened)
    out.seek(0)
    return out


def put_back(stored: io.BytesIO, place: Path) -> None:
    opened = directory(place)
    try:
        while stored.tell() < len(stored.getvalue()):
            shared.load(opened, stored)
    finally:
        os.close(opened)


@pytest.mark.parametrize("size", [0, 1, shared.BLOCK, shared.BLOCK + 1, 40 * shared.BLOCK])
def test_a_file_comes_back_whole_and_its_zeros_take_no_room(tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "psm").write_bytes(bytes(size))
    if size:
        with (source / "psm").open("r+b") as file:
            file.seek(size - 1)
            file.write(b"x")
    (source / "psm").chmod(0o640)

    stored = kept(source)
    put_back(stored, tmp_path / "there")

    there = tmp_path / "there" / "psm"
    assert there.read_bytes() == (source / "psm").read_bytes()
    assert there.stat().st_mode & 0o7777 == 0o640
    assert len(stored.getvalue()) < 2 * shared.BLOCK


def test_a_file_with_two_names_comes_back_as_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "sem.a").write_text("1")
    (source / "link_remap.1").hardlink_to(source / "sem.a")

    put_back(kept(source), tmp_path / "there")

    there = tmp_path / "there"
    assert (there / "sem.a").samefile(there / "link_remap.1")


def test_what_has_the_name_is_replaced_and_never_followed(tmp_path: Path) -> None:
    source, there = tmp_path / "source", tmp_path / "there"
    source.mkdir()
    there.mkdir()
    for name in ("psm", "link"):
        (source / name).write_text("new")
    (tmp_path / "victim").write_text("safe")
    (there / "link").symlink_to(tmp_path / "victim")
    (there / "psm").write_text("of an engine that lives")
    mapped = (there / "psm").open()

    put_back(kept(source), there)

    assert (there / "link").read_text() == (there / "psm").read_text() == "new"
    assert not (there / "link").is_symlink()
    assert (tmp_path / "victim").read_text() == "safe"
    with mapped:
        assert mapped.read() == "of an engine that lives"


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "..", ""])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    about = {"names": [name], "size": 0, "mode": 0o600, "uid": 0, "gid": 0}
    stored = io.BytesIO(json.dumps(about).encode() + b"\n" + shared.END)

    with pytest.raises(ValueError, match="a file of /dev/shm is called"):
        put_back(stored, tmp_path / "there")

    assert not (tmp_path / "escape").exists()
