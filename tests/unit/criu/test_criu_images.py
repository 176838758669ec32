"""The images of one dump: each is read once, from a directory or from memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cria.criu import program
from cria.criu.images import framing
from cria.criu.images.directory import CriuImages
from cria.criu.images.framing import Image
from cria.criu.images.summary import ImageProcess
from cria.criu.messages import load
from cria.errors import CheckpointDamaged, CheckpointMissing


def write(directory: Path, name: str, kind: int, *messages: Any) -> None:
    entries = tuple(message.SerializePartialToString() for message in messages)
    framing.write(directory / name, Image(header=framing.header(kind), entries=entries))


@pytest.fixture
def directory(fdinfo: ModuleType, tmp_path: Path) -> Path:
    """The images of a process with one thread more, one file and one file that had no path."""
    pstree = load("pstree", program.find()).pstree_entry
    remap = load("remap_file_path", program.find()).remap_file_path_entry
    core = load("core", program.find())
    write(
        tmp_path,
        "pstree.img",
        framing.PSTREE,
        pstree(pid=7, ppid=1, pgid=7, sid=7, threads=[7, 8]),
    )
    write(
        tmp_path,
        "remap-fpath.img",
        framing.REMAP_FPATH,
        remap(orig_id=3, remap_id=4, remap_type=0),
    )
    file = fdinfo.file_entry(type=1, id=3)
    file.reg.id, file.reg.name = 3, "/dev/shm/sem"
    write(tmp_path, "files.img", framing.FILES, file)
    task = core.core_entry(mtype=1)
    task.tc.comm = "python"
    write(tmp_path, "core-7.img", framing.CORE, task)
    write(tmp_path, "ids-7.img", framing.IDS, core.task_kobj_ids_entry(files_id=2))
    write(tmp_path, "fdinfo-2.img", framing.FDINFO, fdinfo.fdinfo_entry(id=3))
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image is opened."""
    counted: Counter[str] = Counter()
    real = Path.open

    def opened(path: Path, *args: Any, **options: Any) -> Any:
        counted[path.name] += 1
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    return counted


def test_each_image_is_opened_once(directory: Path, reads: Counter[str]) -> None:
    images = CriuImages(directory, program.find())

    for _ in range(3):
        assert [file.path for file in images.regular_files()] == ["/dev/shm/sem"]
        assert images.inet_sockets() == images.unix_sockets() == ()
        assert images.remapped_ids == {3}
        assert images.processes == (ImageProcess(pid=7, threads=(7, 8)),)
        (holder,) = images.holders

    assert (holder.name, holder.machine, holder.file_ids) == ("python", "amd64", {3})
    assert set(reads) == {path.name for path in directory.iterdir()}
    assert set(reads.values()) == {1}


def test_images_in_memory_say_what_those_in_a_directory_say(directory: Path) -> None:
    contents = {path.name: path.read_bytes() for path in directory.iterdir()}

    one, other = (
        CriuImages(directory, program.find()),
        CriuImages(Path("archive.tar"), program.find(), contents=contents),
    )

    assert one.holders == other.holders
    assert one.remapped_ids == other.remapped_ids
    assert one.regular_files() == other.regular_files()


def test_what_was_written_is_read_from_then_on(directory: Path) -> None:
    images = CriuImages(directory, program.find())
    images.write_files(images.files.with_entries(()))

    assert images.regular_files() == CriuImages(directory, program.find()).regular_files() == ()


def test_an_image_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"files\.img"):
        CriuImages(tmp_path, program.find()).regular_files()
    with pytest.raises(CheckpointMissing, match=r"files\.img in archive\.tar"):
        CriuImages(Path("archive.tar"), program.find(), contents={}).regular_files()
    assert CriuImages(tmp_path, program.find()).remapped_ids == set()


def test_an_image_without_its_entry_is_damage(tmp_path: Path) -> None:
    (tmp_path / "inventory.img").write_bytes(framing.INVENTORY.to_bytes(4, "little"))
    write(tmp_path, "mm-7.img", framing.MM)

    with pytest.raises(CheckpointDamaged, match=r"inventory\.img"):
        CriuImages(tmp_path, program.find()).inventory  # noqa: B018
    with pytest.raises(CheckpointDamaged, match=r"mm-7\.img"):
        CriuImages(tmp_path, program.find()).mm(7)


def test_an_entry_that_is_no_message_is_damage(directory: Path) -> None:
    image = Image(header=framing.header(framing.PSTREE), entries=(b"\xff",))
    framing.write(directory / "pstree.img", image)

    with pytest.raises(CheckpointDamaged, match=r"pstree\.img"):
        CriuImages(directory, program.find()).processes  # noqa: B018
