"""Every verb prints a JSON document that matches its committed schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from cria.cli import VERBS, kubernetes
from cria.cli.results import Dumped, Restored
from cria.cli.schemas import DOCUMENTS, schema_text
from cria.engine.handle import Engine
from cria.events import StepTiming, Timings

SCHEMA = Path(__file__).parents[3] / "docs" / "reference" / "schema"
TIMINGS = Timings(
    wall_seconds=1.5, unaccounted_seconds=0.5, steps=(StepTiming(name="freeze", seconds=1.0),)
)


def valid(name: str, document: Any) -> bool:
    return Draft202012Validator(json.loads((SCHEMA / f"{name}.json").read_text())).is_valid(
        document
    )


def as_json(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def test_every_verb_has_a_schema() -> None:
    verbs = set(VERBS) - {"kubernetes"} | {f"kubernetes-{verb}" for verb in kubernetes.VERBS}

    assert verbs <= {path.stem for path in SCHEMA.glob("*.json")}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_committed_schema_is_the_one_of_the_code(name: str) -> None:
    assert (SCHEMA / f"{name}.json").read_text() == schema_text(DOCUMENTS[name])


def test_a_single_restored_engine_is_at_the_top_too() -> None:
    engine = Engine(pid=7, url="http://h:1", ports={8000: 1}, ports_moved=14, timings=TIMINGS)

    one, two = as_json(Restored.of((engine,))), as_json(Restored.of((engine, engine)))

    assert valid("restore", one) and valid("restore", two)
    assert (one["pid"], one["url"], one["ports"]) == (7, "http://h:1", {"8000": 1})
    assert two["pid"] is None
    assert [engine["pid"] for engine in two["engines"]] == [7, 7]


def test_a_dump_s_document_matches_and_one_that_lacks_a_field_does_not() -> None:
    document = as_json(Dumped(checkpoint="/c", bytes=1, processes=4, timings=TIMINGS))

    assert valid("dump", document)
    del document["bytes"]
    assert not valid("dump", document)


def test_an_error_is_a_document_on_stdout_with_its_exit_status() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cria", "verify", "/nowhere", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )

    document = json.loads(done.stdout)
    assert done.returncode == 40
    assert done.stderr == ""
    assert valid("error", document)
    assert document["error"]["code"] == "checkpoint-missing"
