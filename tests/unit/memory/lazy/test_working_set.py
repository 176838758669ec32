"""What is kept of a lazy restore is a hint: it may be missing, damaged, or of another checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.memory.lazy import working_set
from cria.memory.lazy.missing import PIECE, Missing, Piece
from cria.memory.lazy.working_set import WorkingSet

KEPT = WorkingSet(checkpoint="this", pieces=((7, 0), (7, PIECE), (8, 0)))


def missing(*starts: int) -> Missing:
    return Missing([Piece(start=s, size=PIECE, original=s, offset=s) for s in starts])


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    working_set.write(tmp_path / "kept", KEPT)

    assert working_set.read(tmp_path / "kept", "this") == KEPT
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b'{"checkpoint": "this"'])
def test_a_damaged_one_is_as_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "kept").write_bytes(content)

    assert working_set.read(tmp_path / "kept", "this") is None


def test_that_of_another_checkpoint_is_as_none(tmp_path: Path) -> None:
    working_set.write(tmp_path / "kept", KEPT)

    assert working_set.read(tmp_path / "kept", "another") is None


def test_pieces_come_in_the_order_in_which_they_were_wanted() -> None:
    kept = WorkingSet(checkpoint="this", pieces=((7, PIECE), (8, 0), (7, 0)))
    found = working_set.in_order(kept, {7: missing(0, PIECE, 2 * PIECE), 8: missing(0)})

    assert [p.start for p in found[7]] == [PIECE, 0]
    assert [p.start for p in found[8]] == [0]


def test_what_is_not_there_is_skipped() -> None:
    kept = WorkingSet(checkpoint="this", pieces=((99, 0), (7, 64 * PIECE)))

    assert working_set.in_order(kept, {7: missing(0)}) == {7: []}


def test_it_lies_beside_the_checkpoint() -> None:
    assert working_set.place_for(Path("/a/qwen")) == Path("/a/.qwen.working-set.json")
