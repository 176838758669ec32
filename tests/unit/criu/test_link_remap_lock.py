"""One at a time, as long as its holder lives."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cria.criu.link_remap_lock import Turn
from cria.errors import EngineBusy


def test_a_turn_lasts_until_it_is_ended(tmp_path: Path) -> None:
    first = Turn(0, tmp_path / "new")
    assert first.lasts

    with pytest.raises(EngineBusy) as caught:
        Turn(0.05, tmp_path / "new")
    assert "fuser" in (caught.value.remedy or "")

    first.end()
    first.end()
    assert not first.lasts
    assert Turn(0, tmp_path / "new").lasts


def test_who_had_to_wait_is_told_so(tmp_path: Path) -> None:
    first = Turn(0, tmp_path / "new")
    after = threading.Timer(0.1, first.end)
    after.start()
    second = Turn(10, tmp_path / "new")

    assert (first.waited, second.waited) == (False, True)


def test_nobody_else_may_look_at_the_lock(tmp_path: Path) -> None:
    Turn(0, tmp_path / "new").end()

    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
