"""What `cria kubernetes remap` and `cria inspect ARCHIVE` print, and how they end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from runtime_archives import inet, members, stored, tar

from cria.cli import main

SCHEMA = Path(__file__).parents[3] / "docs" / "reference" / "schema"


class Command:
    """Runs cria; then has its exit status and output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Command:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        self.status = ended.value.code
        self.out, self.err = self._capsys.readouterr()
        return self

    def document(self, schema: str) -> Any:
        document = json.loads(self.out)
        Draft202012Validator(json.loads((SCHEMA / f"{schema}.json").read_text())).validate(document)
        return document


@pytest.fixture
def cria(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


REMAP = ("kubernetes", "remap")
MOVED = ("-p", "8000=8001", "--elsewhere")


def test_the_result_alone_is_on_stdout(cria: Command, archive: Path, tmp_path: Path) -> None:
    result = cria(*REMAP, archive, *MOVED, "-o", tmp_path / "new")

    assert (result.status, result.out) == (0, f"{tmp_path / 'new'}\n")
    assert "ports moved: 5000 to 5001, 8000 to 8001" in result.err
    assert "connections closed: 1" in result.err
    assert "note: spec.dump: process.args[2] still names 8000; no restore reads it" in result.err


def test_the_document_matches_its_schema(cria: Command, archive: Path, tmp_path: Path) -> None:
    result = cria(*REMAP, archive, *MOVED, "-o", f"oci:{tmp_path}/image", "--json")

    document = result.document("kubernetes-remap")
    assert document["ports"] == {"5000": 5001, "8000": 8001}
    assert document["archive"] == str(tmp_path / "image")
    assert document["digest"].startswith("sha256:")
    assert document["unix_names_changed"] == 1
    assert document["timings"]["steps"][0]["name"] == "open archive"


def test_a_dry_run_prints_the_plan_as_a_restore_does(cria: Command, archive: Path) -> None:
    result = cria(*REMAP, archive, *MOVED, "--dry-run")

    table = result.out.splitlines()
    assert table[0].split() == ["NS", "PROTO", "ROLE", "PROCESS", "OLD", "NEW", "WHY"]
    assert len(table) == 6
    assert any("0.0.0.0:8001" in line and "asked: 8000=8001" in line for line in table)
    assert os.listdir(archive.parent) == ["checkpoint.tar"]
    document = cria(*REMAP, archive, *MOVED, "--dry-run", "--json").document(
        "kubernetes-remap-dry-run"
    )
    assert document["mentions"][0] == {
        "file": "spec.dump", "where": "process.args[2]", "says": "8000"
    }  # fmt: skip


def test_each_error_has_its_exit_status_and_document(
    cria: Command, archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no archive")

    assert cria(*REMAP, archive, "-p", "1=2", "-o", tmp_path / "new", "--elsewhere").status == 52
    other = cria(*REMAP, tmp_path / "text", "-o", tmp_path / "new", "--json")
    assert (other.status, other.document("error")["error"]["code"]) == (44, "not-a-checkpoint")
    assert cria(*REMAP, archive).status == 2
    assert cria(*REMAP).status == 2
    assert cria("inspect", tmp_path / "text").status == 44


def test_explain_prints_the_steps(cria: Command) -> None:
    steps = cria(*REMAP, "--explain").out.splitlines()

    assert steps[0] == "open archive"
    assert steps[-1] == "publish archive"


def test_inspect_shows_an_archive(cria: Command, archive: Path) -> None:
    document = cria("inspect", archive, "--json").document("inspect-archive")
    shown = cria("inspect", archive, "--sockets").out

    assert document["origin"]["runtime"] == "containerd"
    assert document["machine"] == "amd64"
    assert document["processes"] == [{"pid": 7, "parent": 0, "name": "python", "threads": 2}]
    listener = document["sockets"][0]
    assert (listener["state"], listener["local"]["port"], listener["role"]) == (
        "LISTEN", 8000, "unknown"
    )  # fmt: skip
    assert [socket["name"] for socket in document["unix_sockets"]] == ["@name", "/tmp/socket"]
    for text in ("server of pod models/engine-0", "containerd with runc", "0.0.0.0:8000", "@name"):
        assert text in shown
    assert max(map(len, shown.splitlines()[1:])) <= 100


def test_inspect_shows_an_archive_without_sockets(
    cria: Command, fdinfo: ModuleType, tmp_path: Path
) -> None:
    bound = inet(fdinfo, 1, 0, state=7)
    path = stored(tmp_path / "quiet", tar(members(fdinfo, bound)), "zstd")

    shown = cria("inspect", path).out

    assert "without zstd" in shown
    assert "CLOSE" in shown
