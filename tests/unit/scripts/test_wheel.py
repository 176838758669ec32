"""The wheel: cria alone, under the distribution's own name, with a command that works without a checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cria.model.version import VERSION

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout; pip builds it with the same backend, in an environment of its own."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", directory], cwd=ROOT, check=True, capture_output=True)
    (path,) = directory.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents, as pip puts them into site-packages."""
    directory = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def run_cria(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cria", *arguments],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_wheel_holds_cria_and_nothing_else(installed: Path) -> None:
    information = f"cria_checkpoint-{VERSION}.dist-info"
    assert {path.name for path in installed.iterdir()} == {"cria", information}


def test_the_wheel_requires_what_cria_imports(installed: Path) -> None:
    metadata = (installed / f"cria_checkpoint-{VERSION}.dist-info/METADATA").read_text()
    required = {
        line.split()[1].split(">")[0]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    }
    packages = {"backports-zstd", "blake3", "click", "msgspec", "protobuf", "psutil", "pyroute2"}
    assert required == packages


def test_no_text_sends_a_reader_to_the_project_on_pypi_that_is_called_cria() -> None:
    wrong = re.compile(r"pip install[^\n]*\s'?cria(?:\[|'|`|\s|$)", re.MULTILINE)
    texts = [*ROOT.glob("*.md"), *ROOT.glob("cria/**/*.py")]
    for directory in ("docs", "examples", "hooks"):
        texts += [path for path in ROOT.glob(f"{directory}/**/*") if path.suffix != ".svg"]

    assert len(texts) > 200
    for path in texts:
        assert not path.is_file() or not wrong.search(path.read_text()), path


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("ps", "--help")])
def test_the_commands_of_the_wheel_show_their_help(installed: Path, arguments: list[str]) -> None:
    done = run_cria(installed, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")


def test_the_wheel_knows_its_version(installed: Path) -> None:
    assert run_cria(installed, "--version").stdout.split()[-1] == VERSION


def test_bench_says_that_it_needs_a_checkout(installed: Path) -> None:
    done = run_cria(installed, "bench", "--rounds", "1", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["message"] == "cria bench needs a checkout of cria"
    assert "make bench" in error["remedy"]
