"""scripts/setup: what is done is skipped, what fails ends the setup, and an old CRIU is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose setup has one part, `cria`, that the test writes."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    (tmp_path / "scripts/setup.d/system.sh").write_text(
        "system_packages_are_there() { return 0; }\ninstall_system_packages() { return 1; }\n"
    )
    return tmp_path


def run_setup(checkout: Path, *, is_done: str, work: str) -> subprocess.CompletedProcess[str]:
    (checkout / "scripts/setup.d/cria.sh").write_text(
        f"is_done() {{ {is_done}\n}}\nwork() {{ {work}\n}}\nset_up_cria() {{ step it is_done work; }}\n"
    )
    return subprocess.run(
        [checkout / "scripts/setup", "cria"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_a_step_that_is_done_is_not_run_again(checkout: Path) -> None:
    done = run_setup(checkout, is_done="echo remark", work="touch ran")
    assert done.returncode == 0
    assert "there already: remark" in done.stdout
    assert not (checkout / "ran").exists()


def test_a_step_that_is_not_done_is_run_and_timed(checkout: Path) -> None:
    done = run_setup(checkout, is_done="[[ -f ran ]]", work="touch ran")
    assert done.returncode == 0, done.stderr
    assert "it                       done in " in done.stdout


def test_a_command_that_fails_within_a_step_ends_the_setup_there(checkout: Path) -> None:
    done = run_setup(checkout, is_done="[[ -f ran ]]", work="echo why; false; touch ran")
    assert done.returncode == 1
    assert not (checkout / "ran").exists()
    assert "failed at: it (status 1)" in done.stderr
    assert "| why" in done.stderr
    assert "ready in" not in done.stdout


def test_a_step_that_changes_nothing_ends_the_setup(checkout: Path) -> None:
    done = run_setup(checkout, is_done="return 1", work="true")
    assert done.returncode == 1
    assert "did not bring what it should" in done.stderr


def test_a_pointless_warning_of_pip_is_not_shown(checkout: Path) -> None:
    noise = "WARNING: Location 'file:///a/b/' is ignored: it is neither a file nor a directory."
    done = run_setup(checkout, is_done="return 1", work=f'echo "{noise}"; echo real; false')
    assert "| real" in done.stderr
    assert "is ignored" not in done.stderr


def test_an_unknown_part_is_named(checkout: Path) -> None:
    done = subprocess.run(
        [checkout / "scripts/setup", "cuda"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no part is called 'cuda'" in done.stderr


@pytest.mark.parametrize(
    ("version", "new_enough"),
    [
        ("3.17.1", False),
        ("4.0", False),
        ("4.1", True),
        ("4.1.1", True),
        ("4.3", True),
        ("4.10", True),
    ],
)
def test_a_criu_older_than_4_1_is_refused(tmp_path: Path, version: str, new_enough: bool) -> None:
    criu = tmp_path / "criu"
    criu.write_text(f"#!/bin/sh\necho 'Version: {version}'\n")
    criu.chmod(0o755)
    script = "VENV=.venv; source setup.d/criu.sh; is_new_enough " + str(criu)
    status = subprocess.run(["bash", "-c", script], cwd=SCRIPTS, check=False).returncode
    assert (status == 0) is new_enough


def test_an_installation_under_the_old_name_is_removed_first(tmp_path: Path) -> None:
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$*" >> "$0.log"\n')
    python.chmod(0o755)
    script = (
        f"VENV={tmp_path} CONSTRAINTS=constraints.txt; put_stamp() {{ :; }};"
        "source setup.d/cria.sh; cria_inputs() { :; }; install_cria"
    )
    subprocess.run(["bash", "-eu", "-c", script], cwd=SCRIPTS, check=True)

    calls = [line.split()[2] for line in (tmp_path / "bin/python.log").read_text().splitlines()]
    assert calls == ["show", "uninstall", "install"]
