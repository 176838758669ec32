"""Call cria as users do, a new process each time: what it costs to start belongs to what they wait for."""

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

SECONDS = 600.0


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """Of `cria restore --json` what is of use here."""

    pid: int
    url: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A command that went well: when it began, its seconds, and what it answered."""

    begin: float
    seconds: float
    timings: Timings | None = None
    bytes: int = 0
    engines: tuple[Engine, ...] = ()


def options(verb: str) -> set[str]:
    """The options that a verb has, as its help names them."""
    command = [sys.executable, "-m", "cria", verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(re.findall(r"(?<![\w-])--[a-z-]+", done.stdout))


def dump(pid: int, output: Path, words: Sequence[str] = ()) -> Done:
    """`cria dump PID -o OUTPUT`. Raises what it says."""
    return _run(["dump", str(pid), "--output", str(output), *words])


def make_ready(checkpoint: Path, verb: str) -> Done:
    """`cria VERB CHECKPOINT`. Raises what it says."""
    return _run([verb, str(checkpoint)])


def restore(checkpoint: Path, words: Sequence[str] = ()) -> Done:
    """`cria restore CHECKPOINT`. Raises what it says."""
    return _run(["restore", str(checkpoint), *words])


def _run(words: list[str]) -> Done:
    command = [sys.executable, "-m", "cria", *words, "--json", "--progress", "none"]
    begin = time.monotonic()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
    )
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        raise _error(words, done.stdout, done.stderr)
    answer = json.loads(done.stdout)
    return msgspec.convert({**answer, "begin": begin, "seconds": seconds}, Done)


def _error(words: list[str], answer: bytes, said: bytes) -> CriaError:
    """The error of the command, told as one of the benchmark's."""
    try:
        parts = json.loads(answer)["error"]
    except (ValueError, KeyError):
        parts = {"message": "it ended without a word", "details": said.decode(errors="replace")}
    return EngineFailed(
        f"cria {' '.join(words)}: {parts['message']}",
        details=parts.get("details"),
        remedy=parts.get("remedy"),
        log=parts.get("log"),
    )
