"""What every test may ask for: the powers it needs, and programs that are ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more of the machine's load than of the code.
settings.register_profile("cria", deadline=None)
settings.load_profile("cria")

# A shell starts what it runs in the background with Ctrl-C ignored, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROGRAMS = Path(__file__).parent / "programs"


def power_missing(power: str) -> str | None:
    """Why this machine cannot run tests that need `power`, and what would change that."""
    if power == "root":
        if os.geteuid() != 0:
            return "needs root: run `make test` as root"
        from cria.criu import program
        from cria.errors import CriaError

        try:
            program.require(program.find())
        except CriaError as error:
            return f"needs CRIU: {error.message}; run `make setup`"
    if power == "engine":
        from importlib.util import find_spec

        if find_spec("vllm") is None:
            return "needs vLLM for the CPU: run `make setup`"
    if power == "containerd" and not (Path(sys.prefix) / "lib" / "containerd").is_dir():
        return "needs containerd: run `make setup-kubernetes`"
    if power == "gpu" and not Path("/dev/nvidiactl").exists():
        return "needs an NVIDIA GPU with a driver of 570 or newer"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A missing power skips a test, saying how to get it; where CI is set only a GPU may be missing."""
    for power in ("root", "containerd", "engine", "gpu"):
        if item.get_closest_marker(power) is None:
            continue
        reason = power_missing(power)
        if reason is None:
            continue
        if os.environ.get("CI") and power != "gpu":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def programs() -> Path:
    return PROGRAMS


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def choose() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return choose


@pytest.fixture
def shm_is_left_clean() -> Iterator[None]:
    """Fail a test that leaves files on /dev/shm that no living process uses."""
    before = set(os.listdir("/dev/shm"))
    yield
    left = {name for name in set(os.listdir("/dev/shm")) - before if not in_use(name)}
    assert not left, f"left on /dev/shm: {left}"


def in_use(name: str) -> bool:
    """Whether a process has mapped this file of /dev/shm; another test run may be at work."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f"/dev/shm/{name}" in maps.read_text():
                return True
    return False
