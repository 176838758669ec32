"""cria bench with real CRIU, on a stand-in for vLLM that starts in a second."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from jsonschema import validate

from benchmarks.document import Bench
from cria.cli.schemas import schema_text

pytestmark = pytest.mark.root


@pytest.fixture
def bench(
    tmp_path: Path, programs: Path, shm_is_left_clean: None
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `cria bench` on the stand-in, with the checkpoints in `scratch`."""
    shutil.copy(programs / "vllm_standin.py", tmp_path / "vllm")

    def run(*words: object, engine: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "cria",
            "bench",
            "--quick",
            "--directory",
            tmp_path / "scratch",
            *words,
        ]
        serve = [sys.executable, tmp_path / "vllm", "serve", "--port=auto", *engine]
        return subprocess.run(
            [*command, "--", *serve], capture_output=True, text=True, check=False, timeout=600
        )

    return run


def test_a_quick_run_measures_every_way_and_leaves_nothing(
    bench: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"

    done = bench("--json", "--picture", tmp_path / "p.svg")

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
    assert str(scratch) not in command_lines()


def test_an_engine_that_fails_keeps_its_measurements_and_has_a_trouble(
    bench: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The canary is the fifth request that the stand-in answers; the sixth request fails."""
    done = bench("--json", engine=["--sound-for=5"])

    assert done.returncode == 3, done.stdout + done.stderr
    (measured,) = json.loads(done.stdout)["engines"]
    raw, plain, *_ = measured["ways"]
    assert raw["restore"]["count"] == 2
    assert plain["dump"]["median"] > 0
    assert plain["restore"] is None
    (trouble,) = measured["troubles"]
    assert "does not compute what it computed before" in trouble
    assert trouble in done.stderr
    assert os.listdir(tmp_path / "scratch") == []


def test_it_is_an_error_where_nothing_can_be_measured(
    bench: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = bench("--json", engine=["--sound-for=many"])

    assert done.returncode not in (0, 3), done.stdout
    assert "error" in json.loads(done.stdout)


def command_lines() -> str:
    """Return the command line of every process of this host."""
    lines = []
    for entry in Path("/proc").iterdir():
        try:
            lines.append((entry / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)
