"""The engine that is measured: start it as users do, ask it for tokens, kill it and clean up after it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import sqrt
from pathlib import Path

import msgspec
import psutil

from benchmarks.document import Engine
from cria.demo import make_model, serve_command
from cria.engine import files, handle
from cria.engine.http_api import Generation, generate
from cria.engine.inventory.collect import collect_inventory
from cria.engine.launch.launcher import assign_ports, launch, wait_until_serving
from cria.errors import CriaError, EngineFailed
from cria.system import processes

START_SECONDS = 600.0
REAP_SECONDS = 2.0
TOKENS = 8


class StartedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """A running engine, the seconds from its start to its first token, and what it generated."""

    pid: int
    url: str
    first_token_seconds: float
    generation: Generation


def command_for(engine: Engine, directory: Path) -> list[str]:
    """Return the command that serves a tiny model as `engine` describes it; the model is made first."""
    if engine.kv_gib is None or engine.ranks is None or engine.model_mb is None:
        raise ValueError("an engine that the user named has a command already")
    model = make_model(
        directory / f"model-{engine.model_mb}", hidden=hidden_size_for(engine.model_mb)
    )
    cache_bytes = int(engine.kv_gib * (1 << 30))
    serve = serve_command(model, "auto", engine.ranks)
    return [*serve, "--kv-cache-memory-bytes", str(cache_bytes)]


def hidden_size_for(megabytes: int) -> int:
    """Return the hidden size H at which the tiny model has about `megabytes` MB of weights.

    The weights take 4 x (3584 H + 24 H^2) bytes. H is a multiple of 64.
    """
    hidden_size = (-3584 + sqrt(3584**2 + 24e6 * megabytes)) / 48
    return max(64, round(hidden_size / 64) * 64)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> StartedEngine:
    """Start an engine and wait for its first token. Raises EngineFailed; then nothing of it runs.

    `environment` holds defaults: this process's own variables win.
    """
    with assign_ports(command) as engine_command:
        begin = time.monotonic()
        launched = launch(engine_command, log, environment={**environment, **os.environ})
        try:
            url = wait_until_serving(launched, seconds=START_SECONDS)
            first_token_seconds = first_token(url) - begin
            generation = generate(url, tokens=TOKENS)
        except BaseException:
            kill(launched.pid)
            raise
    return StartedEngine(
        pid=launched.pid,
        url=url,
        first_token_seconds=first_token_seconds,
        generation=generation,
    )


def first_token(url: str) -> float:
    """Ask for one token and return when it arrived (monotonic clock)."""
    generate(url, tokens=1)
    return time.monotonic()


def check_tokens(url: str, before: Generation) -> None:
    """Raise EngineFailed where an engine does not generate what it generated before.

    The times of a restore that damages the engine mean nothing.
    """
    after = generate(url, tokens=TOKENS)
    if after.tokens != before.tokens:
        raise EngineFailed(
            f"the engine restored at {url} generates other tokens",
            details=f"before {before.tokens}, after {after.tokens}",
            remedy="look into it: cria doctor",
        )


def kill(root: int) -> None:
    """Kill an engine and remove what it leaves behind. An engine that has ended already is no error."""
    try:
        inventory = collect_inventory(root, any_process=True)
    except CriaError:
        reap()
        return
    stores = files.file_stores(inventory)
    pids = [process.pid for process in inventory.processes]
    processes.kill(pids)
    processes.wait_for_exit(inventory.processes)
    # A process whose parent is another one of the engine can be reaped only after that one has ended.
    deadline = time.monotonic() + REAP_SECONDS
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        reap()
        time.sleep(0.005)
    handle.clean_up(inventory, stores)


def reap() -> None:
    """Reap every child that has ended: orphans become children of this process, and a zombie keeps its PID.

    The next restore needs that PID. Do not call this while another thread waits for a child.
    """
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def pss_bytes(roots: Iterable[int]) -> int:
    """Return the memory of several engines in bytes, in which shared memory counts once (Pss in proc(5))."""
    total = 0
    for root in map(psutil.Process, roots):
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total
