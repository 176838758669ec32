"""A real vLLM engine with one rank and with two is dumped, cloned, restored and stopped. The order of the tests matters."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import cria
from cria.engine.http_api import generate
from cria.engine.inventory.collect import collect_inventory
from cria.errors import Unhealthy
from cria.network.reservation import reserve_any

from .conftest import RunningEngine, answer, command, serve, serving

pytestmark = [pytest.mark.root, pytest.mark.engine]
KV_CACHE = 1 << 30  # of each rank: conftest sets VLLM_CPU_KVCACHE_SPACE=1
TOKENS: dict[int, tuple[int, ...]] = {}


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Path
) -> Iterator[RunningEngine]:
    """The original, which `cria run` starts cold."""
    ranks: int = request.param
    directory = tmp_path_factory.mktemp(f"ranks-{ranks}")
    with serving(directory, ranks, serve(model, ranks)) as running:
        yield running


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ports_of(pid: int) -> set[int]:
    return {socket.local.port for socket in collect_inventory(pid).listeners()}


def pss_bytes(root: int) -> int:
    """Return the proportional set size of an engine (proc(5), smaps_rollup)."""
    rollups = (
        Path(f"/proc/{p.pid}/smaps_rollup").read_text() for p in collect_inventory(root).processes
    )
    lines = (line for text in rollups for line in text.splitlines() if line.startswith("Pss:"))
    return sum(int(line.split()[1]) * 1024 for line in lines)


def resident_bytes(root: int) -> int:
    """Return the anonymous memory of an engine's processes (proc(5), RssAnon)."""
    status = (Path(f"/proc/{p.pid}/status").read_text() for p in collect_inventory(root).processes)
    lines = (line for text in status for line in text.splitlines() if line.startswith("RssAnon:"))
    return sum(int(line.split()[1]) * 1024 for line in lines)


def test_every_process_and_the_api_have_their_roles(engine: RunningEngine) -> None:
    inventory = collect_inventory(engine.pid)

    roles = [process.role.name for process in inventory.processes]
    assert "API server" in roles
    assert sum(role.startswith("Worker") for role in roles) == engine.ranks
    assert [socket.local.port for socket in inventory.api_listeners()] == [engine.port]


def test_the_listeners_are_those_that_psutil_finds(engine: RunningEngine) -> None:
    """psutil reads /proc/net/tcp, cria uses sock_diag."""
    inventory = collect_inventory(engine.pid)
    by_psutil = {
        (c.laddr.port, process.pid, c.fd)
        for process in inventory.processes
        for c in psutil.Process(process.pid).net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }

    by_cria = {(s.local.port, h.pid, h.fd) for s in inventory.listeners() for h in s.holders}

    assert by_cria == by_psutil
    assert len(by_cria) == 1 + 13 * engine.ranks
    assert not [s for s in inventory.sockets if s.role.name == "unknown"]
    assert sum(len(group.members) == 2 for group in inventory.groups) == 5 * (engine.ranks - 1)


def test_a_dump_gives_the_memory_of_the_kv_cache_back(
    engine: RunningEngine, checkpoints: dict[int, Path]
) -> None:
    """The memory is measured, as a checkpoint holds no zeros, which is what a cache that was never used is."""
    before = resident_bytes(engine.pid)
    answer("dump", engine.pid, "--leave-running", "-o", engine.directory / "warm")

    assert before - resident_bytes(engine.pid) > 0.9 * KV_CACHE * engine.ranks
    manifest = cria.open_checkpoint(engine.directory / "warm").manifest
    assert manifest.quiesced is not None
    assert manifest.quiesced.workers == engine.ranks
    assert manifest.quiesced.dropped_bytes > 0.9 * KV_CACHE * engine.ranks
    assert manifest.quiesced.groups == 10 * (engine.ranks - 1), (
        "two ranks, each in five groups of two"
    )
    assert manifest.canary is not None
    assert manifest.canary.seconds < 3.0, "no compiler runs"
    checkpoints[engine.ranks] = engine.directory / "warm"


def test_the_engine_generates_the_same_tokens_twice(engine: RunningEngine) -> None:
    first, second = generate(engine.url), generate(engine.url)

    assert first.tokens == second.tokens
    assert len(set(first.tokens)) > 4, "a model that repeats one token proves nothing"
    TOKENS[engine.ranks] = first.tokens


def test_a_dry_run_touches_nothing(engine: RunningEngine) -> None:
    facts = answer("dump", engine.pid, "-o", engine.directory / "dry", "--dry-run")

    assert facts["engine"] == engine.pid
    assert not (engine.directory / "dry").exists()


def test_leave_running_keeps_the_engine_serving(engine: RunningEngine) -> None:
    """Any PID of the engine will do, here that of its last worker."""
    some_pid = collect_inventory(engine.pid).processes[-1].pid

    done = command("dump", some_pid, "-o", engine.directory / "running", "--leave-running")

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(engine.directory / "running")
    assert generate(engine.url).tokens == TOKENS[engine.ranks]


def test_a_clone_serves_beside_the_original(engine: RunningEngine) -> None:
    with reserve_any(1) as (port,):
        pass
    clone = answer("restore", engine.directory / "running", "-p", f"{engine.port}={port}")
    try:
        assert clone["pid"] != engine.pid
        assert generate(clone["url"]).tokens == TOKENS[engine.ranks]
        assert generate(engine.url).tokens == TOKENS[engine.ranks]
        ours, theirs = ports_of(engine.pid), ports_of(clone["pid"])
        assert len(ours) == len(theirs) == 1 + 13 * engine.ranks
        assert not ours & theirs
    finally:
        answer("stop", clone["url"])
    assert generate(engine.url).tokens == TOKENS[engine.ranks]


def test_four_clones_answer_under_load_beside_the_original(engine: RunningEngine) -> None:
    if engine.ranks > 1:
        return  # one rank shows it, with less memory and fewer processors
    options = ["--replicas", 4, "--ports", "auto", "--all-or-none"]
    clones = answer("restore", engine.directory / "running", *options)["engines"]
    try:
        urls = [engine.url, *(clone["url"] for clone in clones)]
        assert len(set(urls)) == 5
        with ThreadPoolExecutor(max_workers=10) as pool:
            generations = list(pool.map(generate, urls * 2))
        assert [g.tokens for g in generations] == [TOKENS[1]] * 10
        pss = [pss_bytes(clone["pid"]) for clone in clones]
        print(f"Pss of each of four clones: {', '.join(f'{p >> 20} MiB' for p in pss)}")
        assert all(p > 0 for p in pss)

        again = answer("dump", clones[0]["pid"], "-o", engine.directory / "second generation")
        answer("stop", clones[1]["url"])
        assert generate(clones[2]["url"]).tokens == TOKENS[1]
        revived = answer("restore", again["checkpoint"], "--ports", "auto")
        clones.append(revived)
        assert generate(revived["url"]).tokens == TOKENS[1]
    finally:
        for clone in clones:
            command("stop", clone["url"])
    assert generate(engine.url).tokens == TOKENS[1]


def test_a_dump_to_an_existing_checkpoint_fails_and_the_engine_serves(
    engine: RunningEngine,
) -> None:
    done = command("dump", engine.pid, "-o", engine.directory / "running")

    assert done.returncode == 31
    assert done.stdout == ""
    for part in ("error:", "why:", "fix:", "see:"):
        assert part in done.stderr
    assert generate(engine.url).tokens == TOKENS[engine.ranks]


def test_a_dump_ends_the_engine(engine: RunningEngine) -> None:
    facts = answer("dump", "--port", engine.port, "-o", engine.directory / "checkpoint")

    assert Path(facts["checkpoint"]) == engine.directory / "checkpoint"
    assert facts["bytes"] > 1 << 30
    with pytest.raises(Unhealthy):
        generate(engine.url, timeout=5)
    assert not Path(f"/proc/{engine.pid}/exe").exists()


def test_the_engine_comes_back_on_other_ports_with_the_same_tokens(engine: RunningEngine) -> None:
    checkpoint = cria.open_checkpoint(engine.directory / "checkpoint")
    old_ports = {socket.local.port for socket in checkpoint.manifest.inventory.listeners()}
    with reserve_any(1) as (port,):
        pass
    options = ["-p", f"{engine.port}={port}", "--ports", "fresh"]
    facts = answer("restore", engine.directory / "checkpoint", *options)
    engine.pid, engine.url = facts["pid"], facts["url"]

    assert engine.port == port
    assert facts["ports_moved"] == len(old_ports)
    assert generate(engine.url).tokens == TOKENS[engine.ranks]
    assert not [old for old in old_ports if listening(old)]
    steps = facts["timings"]["steps"]
    accounted = sum(step["seconds"] for step in steps) + facts["timings"]["unaccounted_seconds"]
    assert accounted == pytest.approx(facts["timings"]["wall_seconds"])


def test_a_stopped_engine_comes_back_on_its_own_port(engine: RunningEngine) -> None:
    answer("stop", engine.url)
    with pytest.raises(Unhealthy):
        generate(engine.url, timeout=5)

    done = command("restore", engine.directory / "checkpoint", "--progress", "lines")
    engine.url = done.stdout.strip()

    assert done.returncode == 0, done.stderr
    assert "in all" in done.stderr
    assert generate(engine.url).tokens == TOKENS[engine.ranks]


def test_nothing_is_left_in_shared_memory_when_the_engine_ends(engine: RunningEngine) -> None:
    checkpoint = cria.open_checkpoint(engine.directory / "checkpoint")

    answer("stop", engine.url)

    for saved in checkpoint.manifest.saved_files:
        for name in (saved.path, *saved.names):
            assert not Path(name).exists()
