"""The engine that is measured: started as users start one, asked, and ended without a trace."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import sqrt
from pathlib import Path

import msgspec

from benchmarks.document import Engine
from cria.demo import make_model, serve_command
from cria.engine import files, handle
from cria.engine.http_api import Generation, generate
from cria.engine.inventory.collect import collect_inventory
from cria.errors import CriaError, EngineFailed
from cria.system import processes

START_SECONDS = 600.0
REAP_SECONDS = 2.0
TOKENS = 8


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that has answered: `first_token_seconds` from its start, and what it generated."""

    pid: int
    url: str
    first_token_seconds: float
    generation: Generation


def command_for(engine: Engine, place: Path) -> list[str]:
    """The command that serves a tiny model of that size, with such a cache and so many ranks."""
    assert engine.kv_gib is not None and engine.ranks is not None and engine.model_mb is not None
    model = make_model(place / f"model-{engine.model_mb}", hidden=hidden_for(engine.model_mb))
    cache = str(int(engine.kv_gib * (1 << 30)))
    return [*serve_command(model, "auto", engine.ranks), "--kv-cache-memory-bytes", cache]


def hidden_for(megabytes: int) -> int:
    """The width at which the tiny model has about so many MB of weights: 4 x (3584 H + 24 H^2) bytes."""
    width = (-3584 + sqrt(3584**2 + 24e6 * megabytes)) / 48
    return max(64, round(width / 64) * 64)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Started:
    """Start an engine; it is ended again if it does not serve. Raises EngineFailed.

    The `environment` is what it has where the user's does not say otherwise.
    """
    from cria.engine.launch import automatic_ports
    from cria.engine.launch.launcher import launch, wait_until_serving

    with automatic_ports.assign_ports(command) as words:
        begin = time.monotonic()
        launched = launch(words, log, environment={**environment, **os.environ})
        try:
            url = wait_until_serving(launched, seconds=START_SECONDS)
            generate(url, tokens=1)
            seconds = time.monotonic() - begin
            generation = generate(url, tokens=TOKENS)
        except BaseException:
            end(launched.pid)
            raise
    return Started(pid=launched.pid, url=url, first_token_seconds=seconds, generation=generation)


def first_token(url: str) -> float:
    """Ask for one token; the moment at which it was there."""
    generate(url, tokens=1)
    return time.monotonic()


def compare(url: str, before: Generation) -> None:
    """Raises EngineFailed where an engine generates something else: its times would mean nothing."""
    after = generate(url, tokens=TOKENS)
    if after.tokens != before.tokens:
        raise EngineFailed(
            f"the engine restored at {url} generates other tokens",
            details=f"before {before.tokens}, after {after.tokens}",
            remedy="look into it: cria doctor",
        )


def end(root: int) -> None:
    """Kill an engine and remove what it leaves; what is not there any more does no harm."""
    try:
        inventory = collect_inventory(root, any_process=True)
    except CriaError:
        reap()
        return
    stores = files.file_stores(inventory)
    pids = [process.pid for process in inventory.processes]
    processes.kill(pids)
    processes.wait_for_exit(inventory.processes)
    # Now and then one that had ended was not this process's to reap yet.
    deadline = time.monotonic() + REAP_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        reap()
        time.sleep(0.005)
    handle.clean_up(inventory, stores)


def reap() -> None:
    """Reap whoever has ended: orphans are given to this process, and a zombie holds a PID of the next restore.

    Not while a child is still waited for by somebody else here.
    """
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
