"""The examples that need CRIU run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.root
def test_a_clone_remembers_what_the_original_did_and_goes_its_own_way() -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "clone.py"], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert "was asked 1 time\n" in ran.stdout
    assert "was asked 2 times," in ran.stdout
    assert "once more 3; the original was asked 2 times" in ran.stdout


@pytest.mark.root
def test_a_hook_keeps_clients_away_while_the_server_is_dumped() -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "balancer.py"], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert "before-dump: 1 servers" in ran.stdout
    assert "after-dump: 2 servers" in ran.stdout
    assert "\n0 of the clients' requests had to wait" in ran.stdout
