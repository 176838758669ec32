"""A file of frames can be read in any order, and damage is reported."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from cria.errors import CheckpointDamaged
from cria.memory import frames
from cria.memory.frames import FRAME_BYTES, Frames


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, 3 * FRAME_BYTES + 5])
def test_frames_are_read_in_any_order(tmp_path: Path, size: int) -> None:
    content = random.Random(1).randbytes(size // 2) + bytes(size - size // 2)

    frames.write(
        tmp_path / "f.zst", (content[start : start + 100_000] for start in range(0, size, 100_000))
    )

    with Frames(tmp_path / "f.zst") as file:
        assert file.size == size
        for number, start in reversed(list(enumerate(file.starts))):
            assert b"".join(file.pieces(number)) == content[start : start + FRAME_BYTES]
        assert len(file.starts) == -(-size // FRAME_BYTES)


@pytest.mark.parametrize("cut", [1, 9, 12, 200])
def test_a_file_that_is_cut_off_is_reported(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "f.zst"
    frames.write(path, [os.urandom(1000)])
    os.truncate(path, path.stat().st_size - cut)

    with pytest.raises(CheckpointDamaged, match="cannot be decompressed"):
        Frames(path)
