"""A working set is a hint: it may be missing, damaged, or of another checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.memory.lazy import working_set
from cria.memory.lazy.missing import PIECE, Missing, Piece
from cria.memory.lazy.working_set import WorkingSet

WORKING_SET = WorkingSet(checkpoint="this", pieces=((7, 0), (7, PIECE), (8, 0)))


def missing(*starts: int) -> Missing:
    pieces = [Piece(start=start, size=PIECE, original=start, offset=start) for start in starts]
    return Missing(pieces)


def test_a_working_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    working_set.write(tmp_path / "working-set", WORKING_SET)

    assert working_set.read(tmp_path / "working-set", "this") == WORKING_SET
    assert (tmp_path / "working-set").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["working-set"]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b'{"checkpoint": "this"'])
def test_a_damaged_working_set_is_ignored(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "working-set").write_bytes(content)

    assert working_set.read(tmp_path / "working-set", "this") is None


def test_a_working_set_of_another_checkpoint_is_ignored(tmp_path: Path) -> None:
    working_set.write(tmp_path / "working-set", WORKING_SET)

    assert working_set.read(tmp_path / "working-set", "another") is None


def test_pieces_have_the_order_in_which_they_were_loaded() -> None:
    kept = WorkingSet(checkpoint="this", pieces=((7, PIECE), (8, 0), (7, 0)))
    pieces = working_set.pieces(kept, {7: missing(0, PIECE, 2 * PIECE), 8: missing(0)})

    assert [piece.start for piece in pieces[7]] == [PIECE, 0]
    assert [piece.start for piece in pieces[8]] == [0]


def test_addresses_that_are_not_missing_are_left_out() -> None:
    kept = WorkingSet(checkpoint="this", pieces=((99, 0), (7, 64 * PIECE)))

    assert working_set.pieces(kept, {7: missing(0)}) == {7: []}


def test_the_working_set_lies_beside_the_checkpoint() -> None:
    assert working_set.path_for(Path("/a/qwen")) == Path("/a/.qwen.working-set.json")
