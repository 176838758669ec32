"""Where CRIU's Python package is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.criu.messages import find_pycriu
from cria.errors import PycriuMissing


def test_a_missing_pycriu_is_reported_with_the_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cria.criu.messages._SYSTEM", tmp_path / "system")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(PycriuMissing) as caught:
        find_pycriu(tmp_path / "usr" / "sbin" / "criu")
    assert str(tmp_path / "usr/lib/python3/dist-packages/pycriu") in str(caught.value.details)
    assert str(tmp_path / "system/pycriu") in str(caught.value.details)


def test_the_pycriu_beside_the_program_is_taken_even_through_a_link(tmp_path: Path) -> None:
    package = tmp_path / "usr/lib/python3/dist-packages/pycriu"
    (package / "images").mkdir(parents=True)
    (package / "images/fdinfo_pb2.py").touch()
    (tmp_path / "usr/sbin").mkdir()
    (tmp_path / "usr/sbin/criu").touch()
    (tmp_path / "criu").symlink_to(tmp_path / "usr/sbin/criu")
    assert find_pycriu(tmp_path / "criu") == package
