"""The example that shows the race runs, and reservations never give a port twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "examples" / "port_race.py"


def test_the_example_prints_both_and_reservations_lose_none() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, "50"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["8", "16", "32"]
    assert all(row.endswith("0/50 (0.0 %)") for row in rows)
