"""cria bench with real CRIU, on a stand-in for an engine that starts in a second."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import validate

from cria.bench.document import Bench
from cria.cli.documents import schema_text

pytestmark = pytest.mark.root


def test_a_quick_run_measures_every_way_and_leaves_nothing(
    tmp_path: Path, programs: Path, shm_is_left_clean: None
) -> None:
    engine, scratch = tmp_path / "vllm", tmp_path / "scratch"
    shutil.copy(programs / "vllm_standin.py", engine)
    words = ["bench", "--quick", "--json", "--directory", scratch, "--picture", tmp_path / "p.svg"]

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cria",
            *words,
            "--",
            sys.executable,
            engine,
            "serve",
            "--port=auto",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    validate(document, json.loads(schema_text(Bench)))
    (measured,) = document["engines"]
    raw, plain, *_ = measured["ways"]
    for way in (raw, plain):
        for figure in ("dump", "pause", "bytes", "restore", "first_token"):
            assert way[figure]["median"] > 0, (way["name"], figure)
    assert measured["cold"]["count"] == 1
    assert plain["own_restore"]["median"] < plain["restore"]["median"]
    (clones, *_) = measured["clones"]
    assert clones["all_bytes"]["median"] > clones["one_bytes"]["median"] > 0
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    assert os.listdir(scratch) == []
    assert str(scratch) not in running()


def running() -> str:
    """What runs on this host, by its arguments."""
    lines = []
    for entry in Path("/proc").iterdir():
        try:
            lines.append((entry / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)
