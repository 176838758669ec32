"""Run cria as users do, as a new process each time: users wait for the start of Python too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cria.errors import CriaError, EngineFailed
from cria.events import Timings

TIMEOUT_SECONDS = 600.0


class RestoredEngine(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an engine in `cria restore --json` that the benchmark needs."""

    pid: int
    url: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a successful command printed, with its start (monotonic clock) and its seconds."""

    start: float
    seconds: float
    timings: Timings | None = None
    bytes: int = 0
    engines: tuple[RestoredEngine, ...] = ()


def options(verb: str) -> set[str]:
    """Return the options that the help of a verb lists."""
    command = [sys.executable, "-m", "cria", verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(re.findall(r"(?<![\w-])--[a-z-]+", done.stdout))


def dump(pid: int, output: Path, arguments: Sequence[str] = ()) -> Result:
    """Run `cria dump`. Raises the command's error."""
    return _run(["dump", str(pid), "--output", str(output), *arguments])


def prepare(checkpoint: Path, verb: str) -> Result:
    """Run `cria VERB CHECKPOINT`, which prepares a checkpoint for a mode. Raises the command's error."""
    return _run([verb, str(checkpoint)])


def restore(checkpoint: Path, arguments: Sequence[str] = ()) -> Result:
    """Run `cria restore`. Raises the command's error."""
    return _run(["restore", str(checkpoint), *arguments])


def _run(arguments: list[str]) -> Result:
    command = [sys.executable, "-m", "cria", *arguments, "--json", "--progress", "none"]
    start = time.monotonic()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_SECONDS, check=False
    )
    seconds = time.monotonic() - start
    if done.returncode != 0:
        raise _error(arguments, done.stdout, done.stderr)
    document = json.loads(done.stdout)
    return msgspec.convert({**document, "start": start, "seconds": seconds}, Result)


def _error(arguments: list[str], stdout: bytes, stderr: bytes) -> CriaError:
    try:
        parts = json.loads(stdout)["error"]
    except (ValueError, KeyError):
        details = stderr.decode(errors="replace")
        parts = {"message": "it ended without an error document", "details": details}
    return EngineFailed(
        f"cria {' '.join(arguments)}: {parts['message']}",
        details=parts.get("details"),
        remedy=parts.get("remedy"),
        log=parts.get("log"),
    )
