"""One dump or restore at a time uses the names of CRIU's link remaps."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cria.criu.link_remap_lock import LinkRemapLock
from cria.errors import EngineBusy


def test_the_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    first = LinkRemapLock(0, tmp_path / "new")
    assert first.held

    with pytest.raises(EngineBusy) as caught:
        LinkRemapLock(0.05, tmp_path / "new")
    assert "fuser" in (caught.value.remedy or "")

    first.release()
    first.release()
    assert not first.held
    assert LinkRemapLock(0, tmp_path / "new").held


def test_the_lock_says_whether_another_held_it_first(tmp_path: Path) -> None:
    first = LinkRemapLock(0, tmp_path / "new")
    threading.Timer(0.1, first.release).start()
    second = LinkRemapLock(10, tmp_path / "new")

    assert (first.waited, second.waited) == (False, True)


def test_other_users_cannot_look_at_the_lock(tmp_path: Path) -> None:
    LinkRemapLock(0, tmp_path / "new").release()

    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
