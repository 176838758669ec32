"""The private view of an image directory: links to the images, and nothing CRIU would write through."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.criu.images.directory import private_view
from cria.errors import CheckpointMissing, NotWritable
from cria.network.planner import plan
from cria.ports import rewrite


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    for name in ("files.img", "pages-1.img", "restore.log", "stats-restore", "stats-dump"):
        (directory / name).write_text(name)
    (directory / "parent").symlink_to("../before")
    return directory


def test_a_view_links_images_and_leaves_logs_behind(images: Path, tmp_path: Path) -> None:
    view = private_view(images, tmp_path / "deep" / "view")
    assert sorted(path.name for path in view.iterdir()) == ["files.img", "pages-1.img", "parent"]
    assert (view / "pages-1.img").read_text() == "pages-1.img"


def test_a_view_in_a_place_that_is_taken_is_an_error(images: Path, tmp_path: Path) -> None:
    private_view(images, tmp_path / "view")
    with pytest.raises(NotWritable, match="view"):
        private_view(images, tmp_path / "view")


def test_a_directory_without_files_img_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"files\.img"):
        rewrite(tmp_path, plan([]), tmp_path / "view")
    assert not (tmp_path / "view").exists()
