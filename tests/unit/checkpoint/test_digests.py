"""Every change of a part is found; a file that can be found again is known by samples."""

from __future__ import annotations

import os
import time
from pathlib import Path

import blake3
import msgspec
import pytest

from cria.checkpoint import fingerprints
from cria.checkpoint.handle import Checkpoint
from cria.errors import CheckpointDamaged
from cria.events import Progress
from cria.model import manifest
from cria.model.manifest import MANIFEST
from cria.system import digests

LARGE = 3 << 20


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(LARGE))
    return path


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_a_digest_is_that_of_the_content_with_its_holes(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.seek(5 << 20)
        file.write(b"data")
        file.truncate(17 << 20)

    assert digests.whole(sparse) == blake3.blake3(sparse.read_bytes()).hexdigest()


def test_progress_counts_holes_too(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    sparse.touch()
    os.truncate(sparse, 9 << 20)
    seen: list[int] = []

    digests.whole(sparse, seen.append)

    assert sum(seen) == 9 << 20


def test_an_undamaged_checkpoint_is_verified_to_the_last_byte(checkpoint: Checkpoint) -> None:
    heard: list[object] = []

    compared = checkpoint.verify(heard.append)

    assert compared == sum(part.size_bytes for part in checkpoint.manifest.parts)
    last = [event for event in heard if isinstance(event, Progress)][-1]
    assert last.done_bytes == last.total_bytes == compared


def test_verify_names_every_part_that_is_damaged(checkpoint: Checkpoint) -> None:
    overwrite(checkpoint.images / "pages-1.img", 1 << 20, b"\0")
    overwrite(checkpoint.path / "carried/0000", 12345, b"x")
    (checkpoint.images / "files.img").unlink()
    (checkpoint.images / "core-7.img").write_bytes(b"put there by hand")

    with pytest.raises(CheckpointDamaged) as caught:
        checkpoint.verify()

    assert (caught.value.details or "").splitlines() == [
        "carried/0000 was changed: its digest differs",
        "images/files.img is missing",
        "images/pages-1.img was changed: its digest differs",
        "images/core-7.img is too many",
    ]


def test_small_parts_are_checked_without_reading_the_large(checkpoint: Checkpoint) -> None:
    overwrite(checkpoint.images / "pages-1.img", 0, b"edited")
    assert checkpoint.check_small_parts() == len(b"small")

    overwrite(checkpoint.images / "files.img", 0, b"SMALL")
    with pytest.raises(CheckpointDamaged, match="was changed") as caught:
        checkpoint.check_small_parts()
    assert "files.img" in (caught.value.details or "")


def test_a_link_in_the_place_of_a_part_is_damage(checkpoint: Checkpoint) -> None:
    pages = checkpoint.images / "pages-1.img"
    pages.rename(checkpoint.path.parent / "moved")
    pages.symlink_to(checkpoint.path.parent / "moved")

    with pytest.raises(CheckpointDamaged, match="was changed"):
        checkpoint.verify()


def test_an_old_checkpoint_without_digests_can_still_be_read(checkpoint: Checkpoint) -> None:
    parts = tuple(msgspec.structs.replace(p, digest="") for p in checkpoint.manifest.parts)
    old = msgspec.structs.replace(checkpoint.manifest, parts=parts)
    (checkpoint.path / MANIFEST).unlink()
    manifest.write(old, checkpoint.path / MANIFEST)

    assert Checkpoint.open(checkpoint.path).verify()


def test_the_same_file_elsewhere_and_later_is_the_same(large: Path, tmp_path: Path) -> None:
    recorded = fingerprints.take([str(large)])
    other = tmp_path / "other-host"
    (other / str(large.parent).lstrip("/")).mkdir(parents=True)
    (other / str(large).lstrip("/")).write_bytes(large.read_bytes())
    os.utime(large, (0, 0))

    assert list(fingerprints.differences(recorded)) == []
    assert list(fingerprints.differences(recorded, other)) == []


@pytest.mark.parametrize("offset", [0, LARGE - 1], ids=["first", "last"])
def test_other_content_of_the_same_size_is_seen(large: Path, offset: int) -> None:
    recorded = fingerprints.take([str(large)])
    overwrite(large, offset, bytes([large.read_bytes()[offset] ^ 1]))

    [(file, what, present)] = fingerprints.differences(recorded)

    assert (file.path, what) == (str(large), "has other content")
    assert present not in file.digest


def test_each_difference_is_told(tmp_path: Path) -> None:
    for name in ("same", "gone", "grown", "changed"):
        (tmp_path / name).write_bytes(b"12345")
    recorded = fingerprints.take([str(tmp_path / n) for n in ("same", "gone", "grown", "changed")])
    (tmp_path / "gone").unlink()
    (tmp_path / "grown").write_bytes(b"123456")
    (tmp_path / "changed").write_bytes(b"54321")

    found = {
        Path(f.path).name: (what, here) for f, what, here in fingerprints.differences(recorded)
    }

    assert found["gone"] == ("is missing", "nothing")
    assert found["grown"] == ("has another size", "6 bytes")
    assert found["changed"][0] == "has other content"
    assert set(found) == {"gone", "grown", "changed"}


def test_a_file_that_nobody_touched_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "library").write_bytes(b"code")
    monkeypatch.setattr(fingerprints, "SETTLED_NS", 0)
    recorded = fingerprints.take([str(tmp_path / "library")])

    def read(_: Path) -> str:
        raise AssertionError("it was read")

    monkeypatch.setattr(digests, "sampled", read)
    assert list(fingerprints.differences(recorded)) == []


def test_one_written_with_the_times_it_had_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.write_bytes(b"code")
    monkeypatch.setattr(fingerprints, "SETTLED_NS", 0)
    recorded = fingerprints.take([str(library)])
    before = library.stat()
    time.sleep(0.05)  # clocks of file systems tick slowly
    library.write_bytes(b"evil")
    os.utime(library, ns=(before.st_atime_ns, before.st_mtime_ns))

    [(_, what, _)] = fingerprints.differences(recorded)
    assert what == "has other content"


def test_one_that_changed_a_moment_before_the_dump_is_always_read(tmp_path: Path) -> None:
    (tmp_path / "library").write_bytes(b"code")
    (recorded,) = fingerprints.take([str(tmp_path / "library")])

    assert recorded.stamp == ""
