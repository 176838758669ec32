"""CRIU image files as raw entries: they come back byte for byte, and damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.criu.images import framing
from cria.criu.images.framing import COMMON, FILES, INVENTORY, Image
from cria.errors import CheckpointDamaged, CheckpointMissing

HEADER = COMMON.to_bytes(4, "little") + FILES.to_bytes(4, "little")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "files.img"
    framing.write(path, Image(header=HEADER, entries=(b"one", b"", b"three")))
    return path


@given(entries=st.lists(st.binary(max_size=300), max_size=20))
def test_what_is_joined_splits_into_the_same_entries(
    entries: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("image") / "files.img"
    path.write_bytes(framing.join(HEADER, entries))
    assert framing.read(path, FILES).entries == tuple(entries)


def test_an_inventory_has_one_magic_word_only(tmp_path: Path) -> None:
    path = tmp_path / "inventory.img"
    path.write_bytes(INVENTORY.to_bytes(4, "little") + b"\x02\x00\x00\x00ab")
    assert framing.read(path, INVENTORY).header == INVENTORY.to_bytes(4, "little")
    assert framing.first(path, INVENTORY) == b"ab"


def test_the_first_entry_is_read_without_the_raw_data_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "tcp-stream-1.img"
    kind = framing.TCP_STREAM.to_bytes(4, "little")
    path.write_bytes(HEADER[:4] + kind + b"\x01\x00\x00\x00a" + b"\xff" * 9)
    assert framing.first(path, framing.TCP_STREAM) == b"a"


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_file_cut_anywhere_inside_an_entry_is_damaged(image: Path, cut: int) -> None:
    whole = image.read_bytes()
    at_boundary = len(whole) - cut in {8, 8 + 7, 8 + 7 + 4}
    image.write_bytes(whole[:-cut])
    if at_boundary:
        assert len(framing.read(image, FILES).entries) < 3
        return
    with pytest.raises(CheckpointDamaged, match=r"files\.img"):
        framing.read(image, FILES)


@pytest.mark.parametrize("size", range(8, 15))
def test_a_first_entry_that_is_cut_off_is_damaged(image: Path, size: int) -> None:
    image.write_bytes(image.read_bytes()[:size])
    with pytest.raises(CheckpointDamaged, match=r"files\.img"):
        framing.first(image, FILES)


def test_a_size_that_reaches_past_the_end_is_damaged(image: Path) -> None:
    image.write_bytes(HEADER + b"\xff\xff\xff\x7fab")
    with pytest.raises(CheckpointDamaged):
        framing.read(image, FILES)


def test_an_image_of_another_kind_is_refused(image: Path) -> None:
    with pytest.raises(CheckpointDamaged):
        framing.read(image, framing.PSTREE)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"files\.img"):
        framing.read(tmp_path / "files.img", FILES)


def test_writing_through_a_hard_link_leaves_the_other_name_as_it_was(image: Path) -> None:
    before = image.read_bytes()
    view = image.with_name("view.img")
    view.hardlink_to(image)
    framing.write(view, Image(header=HEADER, entries=(b"new",)))
    assert image.read_bytes() == before
    assert framing.read(view, FILES).entries == (b"new",)
    assert sorted(path.name for path in image.parent.iterdir()) == ["files.img", "view.img"]
