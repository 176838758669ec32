"""The still point of a real engine with two ranks: the tests run in the order they stand."""

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
    """What the engine generated before anything was done to it."""
    recorded = cria.open_checkpoint(warm(2)).manifest.canary
    assert recorded is not None
    return recorded.tokens


class Stream(threading.Thread):
    """A client that reads a streamed completion; `finish` is the reason the engine gave."""

    def __init__(self, engine: RunningEngine, prompt: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self.port, self.prompt, self.wanted = engine.port, prompt, tokens
        self.tokens: list[int] = []
        self.finish: str | None = None
        self.longest_wait = 0.0
        self.begun = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        wish = {
            "model": "tiny",
            "prompt": self.prompt,
            "max_tokens": self.wanted,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(wish), headers)
        last = time.monotonic()
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                said = json.loads(line[6:])
                if "choices" not in said:  # the engine ended
                    return
                self._take(said["choices"][0])
                last, before = time.monotonic(), last
                if self.begun.is_set():
                    self.longest_wait = max(self.longest_wait, last - before)
                self.begun.set()

    def _take(self, choice: dict[str, Any]) -> None:
        self.tokens += choice.get("token_ids") or []
        self.finish = choice.get("finish_reason") or self.finish


class Busy(Stream):
    """Asks again as soon as it is answered: a dump that ends the engine finds it in flight whenever it comes."""

    def run(self) -> None:
        self.finish = "length"
        while self.finish == "length":
            self.finish = None
            with contextlib.suppress(OSError, http.client.HTTPException):  # the engine is gone
                super().run()


def streams(
    engine: RunningEngine, tokens: int, count: int = 3, kind: type[Stream] = Stream
) -> list[Stream]:
    """Clients that have all got their first token."""
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
    pause = max(each.longest_wait for each in clients)
    print(f"pause seen by clients: {pause:.2f} s")
    return pause


def gave_up(worker: int) -> bool:
    """A rank that waits for another has that in its name (cria_agent/meeting.py)."""
    return not Path(f"/proc/{worker}/comm").read_text().startswith("waits for")


def test_requests_in_flight_complete_with_the_tokens_they_would_have_had(
    engine: RunningEngine,
) -> None:
    undisturbed = finished(streams(engine, 400))
    disturbed = streams(engine, 400)

    answer("dump", engine.pid, "-o", engine.place / "loaded", "--leave-running")

    assert finished(disturbed) == undisturbed
    assert [len(tokens) for tokens in undisturbed] == [400, 400, 400]
    assert pause_seen_by(disturbed) > 0.5, "the dump came too late to disturb anybody"


def test_a_request_that_takes_too_long_to_drain_is_left_to_run(engine: RunningEngine) -> None:
    (long,) = streams(engine, LONG, count=1)

    words = ["--inflight", "drain", "--quiesce-seconds", "0.5"]
    refused = command("dump", engine.pid, "-o", engine.place / "drained", *words)

    assert refused.returncode == 26, refused.stderr
    assert "did not pause (drain) within 0.5 s" in refused.stderr
    assert not (engine.place / "drained").exists()
    assert len(finished([long])[0]) == LONG


def test_aborted_requests_are_told_so(engine: RunningEngine) -> None:
    (long,) = streams(engine, LONG, count=1)

    words = ["--inflight", "abort", "--leave-running"]
    answer("dump", engine.pid, "-o", engine.place / "aborted", *words)

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
        words = ["--no-canary", "--quiesce-seconds", "1"]
        refused = command("dump", engine.pid, "-o", engine.place / "hung", *words)
    finally:
        os.kill(workers[-1].pid, signal.SIGCONT)

    assert refused.returncode == 26, refused.stderr
    assert f"{workers[-1].role.name} ({workers[-1].pid}) is stopped" in refused.stderr
    assert not (engine.place / "hung").exists()
    assert generate(engine.url, tokens=4).tokens == canary


def test_a_worker_that_hangs_on_the_way_is_waited_for_by_name_and_nothing_breaks(
    engine: RunningEngine, canary: tuple[int, ...]
) -> None:
    """It stops between the pause and the meeting of all ranks, and comes back when the others gave up."""
    inventory = collect_inventory(engine.pid)
    control = find_client(inventory)
    assert control is not None
    workers = [p for p in inventory.processes if p.role.name.startswith("Worker")]
    still = QuiesceSession(inventory, "keep", seconds=1.0)
    still.pause()
    os.kill(workers[-1].pid, signal.SIGSTOP)
    try:
        with pytest.raises(QuiesceFailed) as caught:
            still.drop_caches()
        deadline = time.monotonic() + 10
        while not gave_up(workers[0].pid):
            assert time.monotonic() < deadline, "the other rank gives up"
            time.sleep(0.05)
    finally:
        os.kill(workers[-1].pid, signal.SIGCONT)
    still.resume()

    assert f"{workers[-1].role.name} ({workers[-1].pid}) is stopped" in str(caught.value.details)
    assert f"({workers[0].pid}) waits for rank 1" in str(caught.value.details)
    assert generate(engine.url, tokens=4).tokens == canary
    answer("dump", engine.pid, "-o", engine.place / "unbroken", "--leave-running")


def test_nobody_else_can_control_it(engine: RunningEngine) -> None:
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


def test_dumped_under_load_and_killed_it_comes_back_and_computes_the_same(
    engine: RunningEngine, canary: tuple[int, ...]
) -> None:
    loaded = streams(engine, LONG, kind=Busy)
    answer("dump", engine.pid, "-o", engine.place / "gone")
    assert all(each.finish is None for each in loaded), "each was in flight when it ended"

    facts = answer("restore", engine.place / "gone", "--ports", "fresh")
    engine.pid, engine.url = facts["pid"], facts["url"]

    assert generate(engine.url, tokens=4).tokens == canary
    names = [step["name"] for step in facts["timings"]["steps"]]
    assert names.index("compare the canary") > names.index("let its requests go on")
    answer("stop", engine.url)


def processor_seconds(engine: RunningEngine) -> float:
    root = psutil.Process(engine.pid)
    return sum(sum(process.cpu_times()[:2]) for process in (root, *root.children(recursive=True)))


def test_a_restored_engine_leaves_the_processors_to_others(engine: RunningEngine) -> None:
    """Each rank would spin for a second after the canary. Later it does, if there are processors enough."""
    facts = answer("restore", engine.place / "gone", "--ports", "fresh")
    engine.pid, engine.url = facts["pid"], facts["url"]
    begin = processor_seconds(engine)
    time.sleep(0.8)
    at_first = processor_seconds(engine) - begin

    generate(engine.url, tokens=1000, timeout=300)  # takes more than there are naps
    begin = processor_seconds(engine)
    time.sleep(0.8)
    later = processor_seconds(engine) - begin
    answer("stop", engine.url)

    assert at_first < 0.5
    if len(os.sched_getaffinity(0)) < engine.ranks + 2:
        assert later < 0.5
    else:
        assert later > 0.5


def test_one_that_computes_something_else_is_taken_down(
    engine: RunningEngine, canary: tuple[int, ...]
) -> None:
    path = engine.place / "gone" / MANIFEST
    manifest = read(path)
    assert manifest.canary is not None
    wrong = msgspec.structs.replace(manifest.canary, tokens=manifest.canary.tokens[::-1])
    path.unlink()
    write(msgspec.structs.replace(manifest, canary=wrong), path)

    refused = command("restore", engine.place / "gone")

    assert refused.returncode == CanaryMismatch.exit_status, refused.stderr
    assert refused.stdout == ""
    assert not Path(f"/proc/{manifest.inventory.root.pid}/exe").exists()
    with pytest.raises(Unhealthy):
        generate(engine.url, tokens=1, timeout=5)
    restored = answer("restore", engine.place / "gone", "--no-canary")
    engine.pid, engine.url = restored["pid"], restored["url"]
    assert generate(engine.url, tokens=4).tokens == canary


def test_one_that_dies_while_it_is_drained_is_not_waited_for(engine: RunningEngine) -> None:
    """The last test: it takes the engine."""
    clients = [Stream(engine, "engine", LONG) for _ in range(2)]
    for client in clients:
        client.start()
        assert client.begun.wait(60)
    worker = next(
        p for p in collect_inventory(engine.pid).processes if p.role.name.startswith("Worker")
    )
    words = ["dump", engine.pid, "-o", engine.place / "dead", "--inflight", "drain", "--no-canary"]

    with subprocess.Popen(
        [sys.executable, "-m", "cria", *map(str, words), "--progress", "json"],
        stderr=subprocess.PIPE,
        text=True,
    ) as dump:
        assert dump.stderr is not None
        for line in dump.stderr:
            if '"step_started"' in line and '"pause the engine"' in line:
                os.kill(worker.pid, signal.SIGKILL)
                break
        said = dump.stderr.read()

    assert dump.returncode == QuiesceFailed.exit_status, said
    assert f"({worker.pid}) has ended" in said
    assert "start it again" in said
    assert not (engine.place / "dead").exists()
