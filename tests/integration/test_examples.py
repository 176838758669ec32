"""The examples that need CRIU run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.root
def test_a_clone_goes_on_from_the_state_of_its_original() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "clone.py"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "was asked 1 time\n" in done.stdout
    assert "was asked 2 times," in done.stdout
    assert "once more 3; the original was asked 2 times" in done.stdout


@pytest.mark.root
def test_a_hook_keeps_clients_away_while_the_server_is_dumped() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "balancer.py"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "before-dump: 1 servers" in done.stdout
    assert "after-dump: 2 servers" in done.stdout
    assert "\n0 of the clients' requests had to wait" in done.stdout
