"""Which CRIU is new enough, asked of programs that only say their version."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.criu.program import VersionQuery
from cria.errors import CriuUnsuitable


def program(directory: Path, says: str, status: int = 0) -> Path:
    path = directory / "criu"
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_the_version_is_what_the_program_answers(tmp_path: Path) -> None:
    assert VersionQuery(program(tmp_path, "Version: 4.2.1")).require() == (4, 2, 1)


def test_a_program_that_is_too_old_is_named(tmp_path: Path) -> None:
    with pytest.raises(CriuUnsuitable, match=r"CRIU 3\.17\.1 is too old"):
        VersionQuery(program(tmp_path, "Version: 3.17.1")).require()


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(CriuUnsuitable) as caught:
        VersionQuery(program(tmp_path, "vdso: unexpected", status=1)).version()
    assert "vdso: unexpected" in (caught.value.details or "")


def test_what_is_no_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(CriuUnsuitable, match="does not start"):
        VersionQuery(tmp_path / "nothing")
