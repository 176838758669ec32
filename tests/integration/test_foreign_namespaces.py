"""cria enters only namespaces that it made: in those of others, everything that it would execute is theirs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cria
from cria.criu import program
from cria.errors import EngineBlocked
from cria.isolation.namespaces import NamespacesOfProcess
from cria.system.procfs import pids, stat

from .conftest import wait_for

pytestmark = [pytest.mark.root]

SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.fixture(params=["program.py", "cria/isolation/init.py"])
def contained(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[int, Path]]:
    """A process in pid and mount namespaces that cria did not make, with a program planted in CRIU's place.

    Yields its PID on this host and the file that the planted program would write. One has the name of the
    init of a clone.
    """
    script = tmp_path / request.param
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SLEEPER)
    written = tmp_path / "planted-program-ran"
    planted = tmp_path / "planted"
    planted.write_text(f"#!/bin/sh\ntouch {written}\n")
    planted.chmod(0o755)
    criu = program.find().resolve()
    inside = f"mount --bind {planted} {criu} && exec {sys.executable} {script}"
    outer = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount", "--propagation", "private", "sh", "-c", inside],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert outer.stdout is not None and outer.stdout.readline() == b"ready\n"
    (child,) = (pid for pid in pids() if (s := stat(pid)) and s.parent == outer.pid)
    yield child, written
    subprocess.run(["kill", "-9", str(child)], check=False)
    outer.communicate(timeout=10)


def test_nothing_of_a_container_is_executed_for_a_dump(
    contained: tuple[int, Path], tmp_path: Path
) -> None:
    pid, written = contained

    with pytest.raises(EngineBlocked):
        cria.dump(pid, tmp_path / "checkpoint", any_process=True)

    assert not written.exists()
    assert stat(pid) is not None
    wait_for(lambda: not list(tmp_path.glob(".checkpoint*")))


def test_nothing_of_a_container_is_executed_although_no_check_has_refused_it(
    contained: tuple[int, Path],
) -> None:
    pid, written = contained

    with pytest.raises(EngineBlocked, match=r"cria did not make|another file") as refused:
        NamespacesOfProcess(pid).run([str(program.find().resolve()), "--version"], [])

    assert "inside the container" in str(refused.value.remedy)
    assert not written.exists()
