"""An archive holds the whole checkpoint; a broken or hostile one leaves nothing behind."""

from __future__ import annotations

import errno
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backports import zstd

import cria
from cria.checkpoint import archive
from cria.checkpoint.handle import Checkpoint
from cria.errors import (
    CheckpointDamaged,
    CheckpointExists,
    CheckpointMissing,
    CriaError,
    NoSpace,
    NotWritable,
)
from cria.events import Progress
from cria.model.manifest import MANIFEST, Part
from cria.operations.pack import pack, unpack

from .conftest import HOLE, encoded

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def packed(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    place = tmp_path / "packed.tar.zst"
    pack(checkpoint, place)
    return place


def blocks(directory: Path) -> int:
    return sum(path.stat().st_blocks for path in directory.rglob("*")) * 512


def test_what_comes_out_is_what_went_in(
    checkpoint: Checkpoint, packed: Path, tmp_path: Path
) -> None:
    unpacked = unpack(packed, tmp_path / "elsewhere" / "checkpoint")

    assert unpacked.verify() == sum(part.size_bytes for part in checkpoint.manifest.parts)
    assert unpacked.manifest == checkpoint.manifest
    for part in checkpoint.manifest.parts:
        there, here = unpacked.path / part.path, checkpoint.path / part.path
        assert there.read_bytes() == here.read_bytes()
        assert there.stat().st_mode & 0o777 == 0o600
    assert unpacked.path.stat().st_mode & 0o777 == packed.stat().st_mode & 0o777 | 0o100 == 0o700
    assert [p.name for p in unpacked.path.parent.iterdir()] == ["checkpoint"]


def test_holes_take_no_room_in_the_archive_nor_after(packed: Path, tmp_path: Path) -> None:
    unpacked = unpack(packed, tmp_path / "other")

    assert packed.stat().st_size < 4 << 20
    assert (unpacked.path / "carried/0000").stat().st_size == HOLE
    assert blocks(unpacked.path) < 4 << 20


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the program zstd")
def test_tar_opens_it_too(checkpoint: Checkpoint, packed: Path, tmp_path: Path) -> None:
    listed = subprocess.run(
        ["tar", "--zstd", "-tf", packed], capture_output=True, text=True, check=True
    ).stdout.split()

    assert listed == [MANIFEST, *(part.path for part in checkpoint.manifest.parts)]


def test_it_streams_through_a_pipe(checkpoint: Checkpoint, tmp_path: Path) -> None:
    stream = io.BytesIO()
    pack(checkpoint, stream)
    stream.seek(0)

    class OneWay(io.RawIOBase):
        """A stream that cannot seek, and gives a little at a time."""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return stream.readinto(memoryview(buffer)[:1000])

    assert unpack(OneWay(), tmp_path / "other").verify()  # type: ignore[arg-type]


def test_progress_ends_at_the_total(checkpoint: Checkpoint, tmp_path: Path) -> None:
    heard: list[Any] = []
    pack(checkpoint, tmp_path / "archive", listener=heard.append)
    unpack(tmp_path / "archive", tmp_path / "other", listener=heard.append)

    total = sum(part.size_bytes for part in checkpoint.manifest.parts)
    last = {event.step: event for event in heard if isinstance(event, Progress)}
    assert [(e.done_bytes, e.total_bytes) for e in last.values()] == [(total, total)] * 2


def test_neither_overwrites(checkpoint: Checkpoint, packed: Path, tmp_path: Path) -> None:
    content = packed.read_bytes()
    (tmp_path / "there").mkdir()

    with pytest.raises(CheckpointExists):
        pack(checkpoint, packed)
    with pytest.raises(CheckpointExists):
        unpack(packed, tmp_path / "there")

    assert packed.read_bytes() == content
    assert list((tmp_path / "there").iterdir()) == []


def test_an_archive_that_came_into_being_meanwhile_is_kept(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = archive.write

    def slow(*words: Any) -> None:
        real(*words)
        (tmp_path / "archive").write_text("somebody else's")

    monkeypatch.setattr("cria.checkpoint.archive.write", slow)
    with pytest.raises(CheckpointExists):
        pack(checkpoint, tmp_path / "archive")

    assert (tmp_path / "archive").read_text() == "somebody else's"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "checkpoint"]


def test_a_damaged_part_is_not_packed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with (checkpoint.images / "pages-1.img").open("r+b") as pages:
        pages.seek(1 << 20)
        pages.write(b"edited")

    with pytest.raises(CheckpointDamaged, match=r"pages-1\.img"):
        pack(checkpoint, tmp_path / "archive")

    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_place_that_cannot_be_written_is_said(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(NotWritable, match="nowhere"):
        pack(checkpoint, tmp_path / "nowhere" / "archive")


def test_an_archive_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing):
        unpack(tmp_path / "none", tmp_path / "other")


class Full(io.RawIOBase):
    """A disk that is full after a while."""

    left = 1 << 20

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


def test_a_full_disk_while_packing_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    descriptors: list[int] = []

    def full(descriptor: int, *_words: Any, **_more: Any) -> Full:
        descriptors.append(descriptor)
        return Full()

    monkeypatch.setattr("cria.operations.pack.os.fdopen", full)
    with pytest.raises(NoSpace, match="archive"):
        pack(checkpoint, tmp_path / "archive")
    monkeypatch.undo()
    for descriptor in descriptors:
        os.close(descriptor)

    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


# Archives that cria pack did not write ---------------------------------------------------------


def plain(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def members_of(checkpoint: Checkpoint) -> Members:
    names = [part.path for part in checkpoint.manifest.parts]
    return [
        plain(MANIFEST, encoded(checkpoint.manifest)),
        *(plain(name, (checkpoint.path / name).read_bytes()) for name in names),
    ]


def written(members: Members, place: Path) -> Path:
    text = b"".join(
        member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
        for member, content in members
    )
    place.write_bytes(zstd.compress(text + bytes(1024), 1))
    return place


def with_parts(checkpoint: Checkpoint, *parts: Part) -> tuple[tarfile.TarInfo, bytes]:
    declared = (*checkpoint.manifest.parts, *parts)
    return plain(MANIFEST, encoded(msgspec.structs.replace(checkpoint.manifest, parts=declared)))


def escaping(name: str) -> Callable[[Checkpoint, Members], Members]:
    """The manifest declares a part that leads elsewhere, and the archive holds it."""

    def change(checkpoint: Checkpoint, members: Members) -> Members:
        declared = with_parts(checkpoint, Part(path=name, size_bytes=4))
        return [declared, *members[1:], plain(name, b"evil")]

    return change


def adding(member: tuple[tarfile.TarInfo, bytes]) -> Callable[[Checkpoint, Members], Members]:
    return lambda _, members: [*members, member]


def announced(checkpoint: Checkpoint, members: Members) -> Members:
    """A header of 2 GiB, of the kind that a reader takes into memory whole."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2 << 30
    return [members[0], (member, b""), *members[1:]]


HOSTILE: dict[str, Callable[[Checkpoint, Members], Members]] = {
    "a part above the checkpoint": escaping("../evil"),
    "a part above by a detour": escaping("images/../../evil"),
    "a part with an absolute name": escaping("/tmp/evil-part"),
    "a part in another directory": escaping("other/evil"),
    "a part that is two dots": escaping(".."),
    "a file that is not declared": adding(plain("images/more.img", b"x")),
    "a file above the checkpoint": adding(plain("../evil", b"x")),
    "a link": adding(special("images/link.img", tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link": adding(special("images/link.img", tarfile.LNKTYPE, "/etc/passwd")),
    "a device": adding(special("images/zero", tarfile.CHRTYPE)),
    "a fifo": adding(special("images/fifo", tarfile.FIFOTYPE)),
    "a directory": adding(special("images/more", tarfile.DIRTYPE)),
    "a sparse member": adding(special("images/sparse", tarfile.GNUTYPE_SPARSE)),
    "the same file twice": lambda _, members: [*members, members[-1]],
    "a second manifest": lambda _, members: [*members, members[0]],
    "no manifest": lambda _, members: members[1:],
    "a manifest that is no JSON": lambda _, members: [plain("manifest.json", b"{"), *members[1:]],
    "a part less": lambda _, members: members[:-1],
    "a part that is larger than declared": lambda _, members: [
        *members[:-1],
        plain(members[-1][0].name, members[-1][1] + b"x"),
    ],
    "a part with other content": lambda _, members: [
        *members[:-1],
        plain(members[-1][0].name, b"y" * len(members[-1][1])),
    ],
    "a long header": announced,
}


def refused(archive_at: Path, tmp_path: Path) -> CriaError:
    (tmp_path / "into").mkdir()
    with pytest.raises(CriaError) as caught:
        unpack(archive_at, tmp_path / "into" / "checkpoint")
    assert list((tmp_path / "into").iterdir()) == []
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/evil-part").exists()
    return caught.value


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    change: Callable[[Checkpoint, Members], Members], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    members = members_of(checkpoint)
    assert unpack(written(members, tmp_path / "good"), tmp_path / "good-one").verify()

    error = refused(written(change(checkpoint, members), tmp_path / "bad"), tmp_path)

    assert isinstance(error, CheckpointDamaged)
    assert error.details


def test_a_bomb_is_refused_before_anything_is_written(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Its manifest declares honestly what it would unpack to."""
    member = tarfile.TarInfo("images/pages-2.img")
    member.size = 1 << 50
    bomb = [with_parts(checkpoint, Part(path=member.name, size_bytes=1 << 50)), (member, b"")]

    error = refused(written(bomb, tmp_path / "bomb"), tmp_path)

    assert isinstance(error, NoSpace)
    assert "MiB are free" in (error.details or "")


@pytest.mark.parametrize("keep", [0, 3, 100, -1000, -1])
def test_an_archive_cut_short_is_damaged(keep: int, packed: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(packed.read_bytes()[:keep])

    assert isinstance(refused(cut, tmp_path), CheckpointDamaged)


def test_a_flipped_bit_is_damage(packed: Path, tmp_path: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    flipped = tmp_path / "flipped"
    flipped.write_bytes(content)

    assert isinstance(refused(flipped, tmp_path), CheckpointDamaged)


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello, I am not an archive")

    assert isinstance(refused(tmp_path / "text", tmp_path), CheckpointDamaged)


def test_it_is_part_of_the_api(checkpoint: Checkpoint, tmp_path: Path) -> None:
    cria.open_checkpoint(checkpoint.path).pack(tmp_path / "archive")

    assert cria.unpack(tmp_path / "archive", tmp_path / "other").verify()


def test_what_follows_the_end_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    more = written(members_of(checkpoint), tmp_path / "more")
    more.write_bytes(more.read_bytes() + zstd.compress(b"more"))

    assert isinstance(refused(more, tmp_path), CheckpointDamaged)
