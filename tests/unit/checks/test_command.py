"""cria doctor: its document is as its schema says, its report without secrets, its status documented."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator

from cria.cli import main
from cria.cli.schemas import schema_text
from cria.errors import CheckpointMismatch, CriuMissing
from cria.operations.checks.diagnosis import Diagnosis
from cria.operations.checks.report import Document, bug_report, document, verdict
from cria.operations.checks.rows import fail, ok, skip, warn

from .builders import inventory, process

SCHEMA = Path(__file__).parents[3] / "docs" / "reference" / "schema" / "doctor.json"
ROWS = (
    ok("kernel", "6.1"),
    warn("memory", "little", "buy some"),
    fail("a file", "7 bytes", "mend it", CheckpointMismatch, pid=3, fd=4, recorded="3 bytes"),
    skip("GPU", "none"),
)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_schema_that_is_committed_is_the_one_of_the_code() -> None:
    assert SCHEMA.read_text() == schema_text(Document), "run `make docs`"


def test_the_document_of_any_finding_is_valid() -> None:
    told = document(Diagnosis(about="host", target="", rows=ROWS))
    made = json.loads(msgspec.json.encode(told))
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(made)
    assert made["findings"][2]["code"] == "checkpoint-mismatch"
    assert made["findings"][2]["recorded"] == "3 bytes"
    assert made["counts"] == {"ok": 1, "warn": 1, "fail": 1, "skip": 1}


def test_the_verdict_counts() -> None:
    said = verdict(Diagnosis(about="engine", target="7", rows=ROWS))
    assert said == "engine 7 cannot be dumped: 1 ok, 1 warn, 1 fail, 1 skipped"
    assert "would restore" in verdict(Diagnosis(about="checkpoint", target="/c", rows=ROWS[:2]))


def test_a_host_without_criu_is_told_so_everywhere_and_ends_with_that_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRIA_CRIU", str(tmp_path / "none"))

    status = run("doctor", "--json")
    told = json.loads(capsys.readouterr().out)

    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(told)
    assert not told["ready"]
    assert "criu-missing" in {f["code"] for f in told["findings"]}
    assert status == told["exit_status"] != 0
    groups = {f["group"] for f in told["findings"]}
    assert {"Host", "CRIU", "GPU", "Container runtime"} == groups


def test_the_table_names_each_finding_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRIA_CRIU", str(tmp_path / "none"))

    run("doctor")
    text = capsys.readouterr().out

    assert "  fail  CRIA_CRIU names" in text
    assert f"        fix: {CriuMissing.default_remedy}" in text
    assert text.splitlines()[-1].startswith("this host is not ready: ")


def test_a_report_has_the_engine_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("vllm", "serve", "m", "--api-key", "abc123", "--hf-token=def456", "--port", "1")
    found = inventory(process(command=words))
    monkeypatch.setattr(
        "cria.operations.checks.report.environment",
        lambda _pid: {"VLLM_API_KEY": "ghi789", "HF_TOKEN": "jkl012", "VLLM_USE_V1": "1"},
    )

    text = bug_report(Diagnosis(about="engine", target="10", rows=ROWS, inventory=found))

    for secret in ("abc123", "def456", "ghi789", "jkl012"):
        assert secret not in text
    assert "--port 1" in text and "VLLM_USE_V1=1" in text
    assert "- fail: " in text and "(recorded: 3 bytes)" in text


def test_a_pid_that_does_not_exist_is_an_error_as_everywhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("doctor", "4194000", "--json") == 20
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "no-such-process"


def test_a_path_without_a_checkpoint_is_an_error_as_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("doctor", str(tmp_path / "none"), "--json") == 40
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "checkpoint-missing"
