"""cria inspect and cria ps: tables fit 100 columns, documents match their schemas, secrets are redacted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from cria.cli import inventory_tables, main
from cria.cli.inventory_documents import Inspected, Stored, flatten_roles
from cria.cli.inventory_tables import layout
from cria.cli.output import middle
from cria.engine.inventory.collect import Snapshot, classify, collect_inventory
from cria.model.inventory import Inventory, Topology
from cria.model.manifest import Gpu, GpuState, Quiesced
from cria.redaction import REDACTED, redact_command

ROOT = Path(__file__).parents[3]
SNAPSHOTS = sorted((ROOT / "tests" / "data" / "snapshots").glob("*.json"))
SCHEMAS = ROOT / "docs" / "reference" / "schema"


GPU = Gpu(uuid="GPU-" + "0123abcd-" * 4, name="NVIDIA H200", memory_bytes=139 << 30)
STORED = Stored(
    created="2026-01-01T00:00:00+00:00",
    host="gpu-node-17",
    kernel="6.12.48+deb13-cloud-amd64",
    criu_version="4.3",
    cria_version="0.1.0",
    bytes=5 << 30,
    quiesced=Quiesced(
        control="@cria", inflight="keep", workers=2, groups=21, dropped_bytes=1 << 30
    ),
    no_quiesce=None,
    canary_tokens=8,
    no_canary=None,
    gpu_state=GpuState(ranks=(368, 380), gpus=(GPU, GPU), driver="580.65", taken_bytes=6 << 30),
)


def inventory(path: Path) -> Inventory:
    return classify(msgspec.json.decode(path.read_bytes(), type=Snapshot))


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_every_table_fits_100_columns(path: Path) -> None:
    found = inventory(path)
    for part in (
        inventory_tables.summary(found, "1"),
        inventory_tables.summary(found, "checkpoints/qwen", STORED),
        inventory_tables.processes(found),
        inventory_tables.sockets(found),
        inventory_tables.unix_sockets(found),
        inventory_tables.groups(found),
        inventory_tables.files(found),
        inventory_tables.memory(found),
    ):
        assert max(map(len, part.splitlines())) <= 100


def test_the_summary_of_a_checkpoint_says_how_it_was_taken() -> None:
    shown = inventory_tables.summary(inventory(SNAPSHOTS[0]), "checkpoints/qwen", STORED)

    for words in (
        "5.00 GiB on the disk",
        "gpu-node-17",
        "requests: keep; 2 workers in 21 groups; 1.00 GiB of caches dropped",
        "8 tokens",
        "6.00 GiB, of PID 368, 380",
        GPU.uuid,
    ):
        assert words in shown


def test_the_summary_says_why_a_checkpoint_has_no_canary_and_was_not_quiesced() -> None:
    without = msgspec.structs.replace(
        STORED, quiesced=None, no_quiesce="not wanted", canary_tokens=0, no_canary="it is no engine"
    )

    shown = inventory_tables.summary(inventory(SNAPSHOTS[0]), "checkpoints/qwen", without)

    assert "no: not wanted" in shown
    assert "none: it is no engine" in shown


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_every_socket_has_a_line_in_its_table(path: Path) -> None:
    found = inventory(path)
    assert len(inventory_tables.sockets(found).splitlines()) == len(found.sockets) + 1
    assert len(inventory_tables.unix_sockets(found).splitlines()) == len(found.unix_sockets) + 1


def test_the_evidence_is_below_each_role() -> None:
    lines = inventory_tables.sockets(inventory(SNAPSHOTS[0]), evidence=True).splitlines()
    assert lines[1].endswith("HTTP API")
    assert lines[2].startswith("     certain: held by")


def document(path: Path) -> dict[str, Any]:
    text = msgspec.json.encode(flatten_roles(Inspected.of(inventory(path), target="1")))
    made: dict[str, Any] = json.loads(text)
    return made


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_the_document_matches_its_schema(path: Path) -> None:
    schema = json.loads((SCHEMAS / "inspect.json").read_text())
    Draft202012Validator(schema).validate(document(path))


def test_the_schema_refuses_a_document_that_lacks_a_field() -> None:
    schema = json.loads((SCHEMAS / "inspect.json").read_text())
    wrong = document(SNAPSHOTS[0])
    del wrong["sockets"][0]["role"]
    assert not Draft202012Validator(schema).is_valid(wrong)


def test_a_socket_has_the_fields_that_scripts_rely_on() -> None:
    (http,) = [s for s in document(SNAPSHOTS[0])["sockets"] if s["role"] == "HTTP API"]
    assert http["state"] == "LISTEN"
    assert http["local"] == {"address": "0.0.0.0", "port": http["local"]["port"]}
    assert http["peer"] is None
    assert (http["confidence"], len(http["evidence"]) > 1) == ("certain", True)


def test_a_peer_is_an_address_and_a_port() -> None:
    tp2 = next(path for path in SNAPSHOTS if path.stem == "tp2")
    pairs = [s for s in document(tp2)["sockets"] if s["role"] == "Gloo pair"]
    assert all(set(s["peer"]) == {"address", "port"} for s in pairs)
    assert len(pairs) == 10


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("serve m --api-key sk-1 --port 1", f"serve m --api-key {REDACTED} --port 1"),
        ("serve m --api-key=sk-1", f"serve m --api-key={REDACTED}"),
        ("serve m --hf-token t --model k", f"serve m --hf-token {REDACTED} --model k"),
        ("serve m --api-key a b --port 1", f"serve m --api-key {REDACTED} {REDACTED} --port 1"),
        ("serve key --port 1", "serve key --port 1"),
        (
            "--max-num-batched-tokens 2048 --tokenizer t",
            "--max-num-batched-tokens 2048 --tokenizer t",
        ),
    ],
)
def test_secrets_on_the_command_line_are_hidden(line: str, shown: str) -> None:
    assert redact_command(tuple(line.split())) == tuple(shown.split())


def test_inspect_shows_any_process_tree_with_any_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("inspect", str(os.getpid()), "--any-process", "--json", "--memory") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["pid"], shown["is_engine"]) == (os.getpid(), False)
    assert shown["zero_bytes"] is not None
    Draft202012Validator(json.loads((SCHEMAS / "inspect.json").read_text())).validate(shown)


def test_inspect_of_a_process_that_is_no_engine_names_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("inspect", str(os.getpid()), "--json") == 21
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "not-an-engine"
    assert str(os.getpid()) in error["details"]


def test_inspect_of_a_missing_checkpoint_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", str(tmp_path / "none"), "--json") == 40
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "checkpoint-missing"


def test_ps_lists_an_engine_and_what_prevents_its_dump(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = collect_inventory(os.getpid(), any_process=True)
    ring = msgspec.structs.replace(found.descriptors[0], kind="io_uring", fd=99)
    blocked = msgspec.structs.replace(found, descriptors=(*found.descriptors, ring))
    monkeypatch.setattr("cria.engine.inventory.discovery.find_engines", lambda: (found.root.pid,))
    monkeypatch.setattr("cria.engine.inventory.collect.collect_inventory", lambda _pid: blocked)
    assert run("ps") == 0
    out = capsys.readouterr().out
    head, row, *blockers = out.splitlines()
    assert head.split() == ["PID", "MODEL", "LAYOUT", "URL", "AGE", "MEMORY", "READY"]
    assert row.split()[0] == str(found.root.pid)
    assert row.split()[-1] == "no"
    assert any("io_uring" in line for line in blockers)
    assert run("ps", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    Draft202012Validator(json.loads((SCHEMAS / "ps.json").read_text())).validate(shown)
    assert shown["engines"][0]["ready"] is False


def test_ps_without_an_engine_prints_nothing_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cria.engine.inventory.discovery.find_engines", lambda: ())
    assert run("ps") == 0
    assert capsys.readouterr().out == ""
    assert run("ps", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "engines": []}


def test_a_long_text_loses_its_middle_and_fits_the_width() -> None:
    assert middle("abcdefghij", 10) == "abcdefghij"
    assert middle("abcdefghijk", 10) == "abcd…ghijk"


def test_the_layout_names_only_dimensions_larger_than_one() -> None:
    assert layout(Topology()) == "TP=1"
    assert layout(Topology(tensor=2, data=2, api_servers=3)) == "TP=2 DP=2 API=3"


def test_the_modules_of_the_verbs_stay_light() -> None:
    asked = "import sys, cria.cli.ps, cria.cli.inspect; print([m for m in ('pyroute2','psutil','rich') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
