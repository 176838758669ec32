"""A real engine with two ranks is quiesced under load, with hanging workers and after restores. The order of the tests matters."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

import cria
from cria.engine.control.lookup import find_client
from cria.engine.control.quiesce import QuiesceSession
from cria.engine.http_api import generate
from cria.engine.inventory.collect import collect_inventory
from cria.errors import CanaryMismatch, QuiesceFailed, Unhealthy
from cria.model.manifest import MANIFEST, read, write

from .conftest import LONG, RunningEngine, answer, command

pytestmark = [
    pytest.mark.root,
    pytest.mark.engine,
    pytest.mark.parametrize("engine", [2], indirect=True, ids=["two ranks"]),
]


@pytest.fixture(scope="module")
def canary(warm: Callable[[int], Path]) -> tuple[int, ...]:
    """The tokens that the engine generated before its first dump."""
    recorded = cria.open_checkpoint(warm(2)).manifest.canary
    assert recorded is not None
    return recorded.tokens


class Stream(threading.Thread):
    """A client that reads a streamed completion; `finish` is the reason why the engine ended it."""

    def __init__(self, engine: RunningEngine, prompt: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self.port, self.prompt, self.max_tokens = engine.port, prompt, tokens
        self.tokens: list[int] = []
        self.finish: str | None = None
        self.longest_wait = 0.0
        self.begun = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        request = {
            "model": "tiny",
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(request), headers)
        last = time.monotonic()
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "choices" not in event:  # the engine ended
                    return
                self._add(event["choices"][0])
                last, before = time.monotonic(), last
                if self.begun.is_set():
                    self.longest_wait = max(self.longest_wait, last - before)
                self.begun.set()

    def _add(self, choice: dict[str, Any]) -> None:
        self.tokens += choice.get("token_ids") or []
        self.finish = choice.get("finish_reason") or self.finish


class Busy(Stream):
    """A client that repeats its request until the engine ends, so that a dump finds it in flight."""

    def run(self) -> None:
        self.finish = "length"
        while self.finish == "length":
            self.finish = None
            with contextlib.suppress(OSError, http.client.HTTPException):  # the engine is gone
                super().run()


def streams(
    engine: RunningEngine, tokens: int, count: int = 3, kind: type[Stream] = Stream
) -> list[Stream]:
    """Return clients that have all got their first token."""
    started = [kind(engine, f"engine {number} is frozen", tokens) for number in range(count)]
    for stream in started:
        stream.start()
    for stream in started:
        assert stream.begun.wait(120)
    return started


def finished(started: list[Stream]) -> list[list[int]]:
    for stream in started:
        stream.join(300)
        assert not stream.is_alive()
    return [stream.tokens for stream in started]


def pause_seen_by(clients: list[Stream]) -> float:
    pause = max(client.longest_wait for client in clients)
    print(f"pause seen by clients: {pause:.2f} s")
    return pause


def gave_up(worker: int) -> bool:
    """Say whether a rank waits no longer: the name of its process says so (cria_agent.rendezvous)."""
    return not Path(f"/proc/{worker}/comm").read_text().startswith("waits for")


def test_requests_in_flight_complete_with_the_same_tokens_as_without_a_dump(
    engine: RunningEngine,
) -> None:
    undisturbed = finished(streams(engine, 400))
    disturbed = streams(engine, 400)

    answer("dump", engine.pid, "-o", engine.directory / "loaded", "--leave-running")

    assert finished(disturbed) == undisturbed
    assert [len(tokens) for tokens in undisturbed] == [400, 400, 400]
    assert pause_seen_by(disturbed) > 0.5, "the dump came too late to disturb anybody"


def test_a_request_that_takes_too_long_to_drain_runs_to_its_end(engine: RunningEngine) -> None:
    (long,) = streams(engine, LONG, count=1)

    options = ["--inflight", "drain", "--quiesce-seconds", "0.5"]
    refused = command("dump", engine.pid, "-o", engine.directory / "drained", *options)

    assert refused.returncode == 26, refused.stderr
    assert "did not pause (drain) within 0.5 s" in refused.stderr
    assert not (engine.directory / "drained").exists()
    assert len(finished([long])[0]) == LONG


def test_aborted_requests_end_with_the_reason_abort(engine: RunningEngine) -> None:
    (long,) = streams(engine, LONG, count=1)

    options = ["--inflight", "abort", "--leave-running"]
    answer("dump", engine.pid, "-o", engine.directory / "aborted", *options)

    assert len(finished([long])[0]) < LONG
    assert long.finish == "abort"


def test_a_worker_that_hangs_is_named_and_the_engine_goes_on(
    engine: RunningEngine, canary: tuple[int, ...]
) -> None:
    workers = [
        p for p in collect_inventory(engine.pid).processes if p.role.name.startswith("Worker")
    ]
    os.kill(workers[-1].pid, signal.SIGSTOP)
    try:
        options = ["--no-canary", "--quiesce-seconds", "1"]
        refused = command("dump", engine.pid, "-o", engine.directory / "hung", *options)
    finally:
        os.kill(workers[-1].pid, signal.SIGCONT)

    assert refused.returncode == 26, refused.stderr
    assert f"{workers[-1].role.name} ({workers[-1].pid}) is stopped" in refused.stderr
    assert not (engine.directory / "hung").exists()
    assert generate(engine.url, tokens=4).tokens == canary


def test_a_worker_that_hangs_before_the_barrier_is_named_and_the_engine_can_be_dumped_again(
    engine: RunningEngine, canary: tuple[int, ...]
) -> None:
    """The worker stops between the pause and the barrier, and comes back when the others have given up."""
    inventory = collect_inventory(engine.pid)
    control = find_client(inventory)
    assert control is not None
    workers = [p for p in inventory.processes if p.role.name.startswith("Worker")]
    session = QuiesceSession(inventory, "keep", seconds=1.0)
    session.pause()
    os.kill(workers[-1].pid, signal.SIGSTOP)
    try:
        with pytest.raises(QuiesceFailed) as caught:
            session.drop_caches()
        deadline = time.monotonic() + 10
        while not gave_up(workers[0].pid):
            assert time.monotonic() < deadline, "the other rank gives up"
            time.sleep(0.05)
    finally:
        os.kill(workers[-1].pid, signal.SIGCONT)
    session.resume()

    assert f"{workers[-1].role.name} ({workers[-1].pid}) is stopped" in str(caught.value.details)
    assert f"({workers[0].pid}) waits for rank 1" in str(caught.value.details)
    assert generate(engine.url, tokens=4).tokens == canary
    answer("dump", engine.pid, "-o", engine.directory / "unbroken", "--leave-running")


def test_no_other_user_and_no_http_route_can_control_the_engine(engine: RunningEngine) -> None:
    control = find_client(collect_inventory(engine.pid))
    assert control is not None

    os.seteuid(65534)
    try:
        with socket.socket(socket.AF_UNIX) as connection, pytest.raises(PermissionError):
            connection.connect(control.path)
    finally:
        os.seteuid(0)

    client = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=5)
    for route in ("/pause", "/resume", "/sleep", "/collective_rpc", "/cria/pause"):
        client.request("POST", route)
        assert client.getresponse().read() is not None
        client.request("POST", route)
        response = client.getresponse()
        response.read()
        assert response.status == 404, route


def test_an_engine_that_is_dumped_under_load_computes_the_same_after_its_restore(
    engine: RunningEngine, canary: tuple[int, ...]
) -> None:
    loaded = streams(engine, LONG, kind=Busy)
    answer("dump", engine.pid, "-o", engine.directory / "gone")
    assert all(client.finish is None for client in loaded), "each request was in flight"

    facts = answer("restore", engine.directory / "gone", "--ports", "fresh")
    engine.pid, engine.url = facts["pid"], facts["url"]

    assert generate(engine.url, tokens=4).tokens == canary
    steps = [step["id"] for step in facts["timings"]["steps"]]
    assert steps.index("verify-canary") > steps.index("resume-engine")
    answer("stop", engine.url)


def processor_seconds(engine: RunningEngine) -> float:
    root = psutil.Process(engine.pid)
    return sum(sum(process.cpu_times()[:2]) for process in (root, *root.children(recursive=True)))


def test_a_restored_engine_leaves_the_processors_to_others(engine: RunningEngine) -> None:
    """Each rank would spin for a second after the canary; later it does, where there are processors enough."""
    facts = answer("restore", engine.directory / "gone", "--ports", "fresh")
    engine.pid, engine.url = facts["pid"], facts["url"]
    begin = processor_seconds(engine)
    time.sleep(0.8)
    at_first = processor_seconds(engine) - begin

    generate(engine.url, tokens=1000, timeout=300)  # more waits than back-offs
    begin = processor_seconds(engine)
    time.sleep(0.8)
    later = processor_seconds(engine) - begin
    answer("stop", engine.url)

    assert at_first < 0.5
    if len(os.sched_getaffinity(0)) < engine.ranks + 2:
        assert later < 0.5
    else:
        assert later > 0.5


def test_an_engine_that_computes_something_else_is_ended(
    engine: RunningEngine, canary: tuple[int, ...]
) -> None:
    path = engine.directory / "gone" / MANIFEST
    manifest = read(path)
    assert manifest.canary is not None
    wrong = msgspec.structs.replace(manifest.canary, tokens=manifest.canary.tokens[::-1])
    path.unlink()
    write(msgspec.structs.replace(manifest, canary=wrong), path)

    refused = command("restore", engine.directory / "gone")

    assert refused.returncode == CanaryMismatch.exit_status, refused.stderr
    assert refused.stdout == ""
    assert not Path(f"/proc/{manifest.inventory.root.pid}/exe").exists()
    with pytest.raises(Unhealthy):
        generate(engine.url, tokens=1, timeout=5)
    restored = answer("restore", engine.directory / "gone", "--no-canary")
    engine.pid, engine.url = restored["pid"], restored["url"]
    assert generate(engine.url, tokens=4).tokens == canary


def test_an_engine_that_dies_while_it_is_drained_is_not_waited_for(engine: RunningEngine) -> None:
    """The last test, as it ends the engine."""
    clients = [Stream(engine, "engine", LONG) for _ in range(2)]
    for client in clients:
        client.start()
        assert client.begun.wait(60)
    worker = next(
        p for p in collect_inventory(engine.pid).processes if p.role.name.startswith("Worker")
    )
    arguments = [
        "dump",
        engine.pid,
        "-o",
        engine.directory / "dead",
        "--inflight",
        "drain",
        "--no-canary",
    ]

    with subprocess.Popen(
        [sys.executable, "-m", "cria", *map(str, arguments), "--progress", "json"],
        stderr=subprocess.PIPE,
        text=True,
    ) as dump:
        assert dump.stderr is not None
        for line in dump.stderr:
            if '"step_started"' in line and '"quiesce-engine"' in line:
                os.kill(worker.pid, signal.SIGKILL)
                break
        rest = dump.stderr.read()

    assert dump.returncode == QuiesceFailed.exit_status, rest
    assert f"({worker.pid}) has ended" in rest
    assert "start it again" in rest
    assert not (engine.directory / "dead").exists()
