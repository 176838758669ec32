"""The whole story on a tiny model on the CPU: start, generate, dump, gone, restore elsewhere, generate again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cria.api import dump, restore
from cria.checkpoint.handle import Checkpoint
from cria.engine.handle import Engine
from cria.engine.http_api import Generation, generate
from cria.errors import EngineFailed, Unhealthy
from cria.events import Listener, Timings
from cria.network.requests import Wishes
from cria.system import processes

Say = Callable[[str], None]

# One thread for each rank: vLLM too leaves a processor to its other processes when it binds threads by itself,
# which it cannot on few. Threads that wait for a processor are waited for at the end of each multiplication.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class DemoFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo measured, all in one run: seconds, bytes, and whether the tokens were the same.

    `cold_start_s` and `restore_s` end when the engine is healthy; `first_token_s` is the time from the
    start of the restore to the first generated token, `cold_first_token_s` likewise for the cold start.
    """

    cold_start_s: float
    cold_first_token_s: float
    dump_s: float
    restore_s: float
    first_token_s: float
    checkpoint_bytes: int
    ports_moved: int
    tokens_equal: bool
    speedup: float
    old_url: str
    url: str
    pid: int
    tokens: tuple[int, ...]
    dump_timings: Timings | None
    restore_timings: Timings | None


def demo(
    directory: str | os.PathLike[str] | None = None,
    *,
    tensor_parallel: int = 1,
    keep: bool = False,
    say: Say = lambda _line: None,
    listener: Listener | None = None,
) -> DemoFacts:
    """Play the story in `directory` (a temporary one by default) and return what was measured.

    With `keep` the restored engine goes on running. Needs the CPU build of vLLM beside cria, or
    $CRIA_DEMO_PYTHON with one. Raises a CriaError.
    """
    with tempfile.TemporaryDirectory(prefix="cria-demo-", ignore_cleanup_errors=keep) as scratch:
        place = Path(scratch if directory is None else directory).resolve()
        place.mkdir(parents=True, exist_ok=True)
        with processes.orphans_adopted():
            return _play(place, tensor_parallel, keep, say, listener)


def serve_command(model: Path, port: int | str, tensor_parallel: int = 1) -> list[str]:
    """The command that serves the tiny model on the CPU."""
    return [
        engine_python(),
        "-m",
        "vllm.entrypoints.openai.api_server",
        *("--model", str(model), "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"),
        *("--tensor-parallel-size", str(tensor_parallel)),
    ]


def make_model(place: Path, *, hidden: int = 256) -> Path:
    """The tiny random model, made once; `hidden` is its width, on which its size depends."""
    model = place / "model"
    if not (model / "config.json").exists():
        made = subprocess.run(
            [engine_python(), "-m", "cria.demo.tiny_model", str(model), str(hidden)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        if made.returncode != 0:
            raise EngineFailed(
                "the tiny model could not be made",
                details="\n".join(made.stderr.splitlines()[-6:]),
                remedy="install vLLM for the CPU: make setup",
            )
    return model


def engine_python() -> str:
    """The Python that has vLLM."""
    return os.environ.get("CRIA_DEMO_PYTHON", sys.executable)


def _play(
    place: Path, tensor_parallel: int, keep: bool, say: Say, listener: Listener | None
) -> DemoFacts:
    from cria.network.reservation import reserve_any

    say("making a tiny random model")
    model = make_model(place)
    with reserve_any(2) as (old_port, new_port):
        say(f"starting vLLM on the CPU, port {old_port} (a cold start takes about a minute)")
        command = serve_command(model, old_port, tensor_parallel)
        before, checkpoint = _start_and_dump(command, place, say, listener)
        say(f"{before.url} is silent: the engine is gone, its checkpoint stays")
    say(f"restoring it on port {new_port}, every other port moved too")
    begin = time.monotonic()
    engine = restore(checkpoint, ports=_moves(old_port, new_port), listener=listener)
    try:
        assert engine.url is not None
        generate(engine.url, tokens=1)
        first_token_s = time.monotonic() - begin
        after = generate(engine.url)
        say(f"it answers with the tokens {_shown(after)}")
    finally:
        if not keep:
            engine.stop()
    return _facts(before, checkpoint, engine, first_token_s, after)


def _start_and_dump(
    command: list[str], place: Path, say: Say, listener: Listener | None
) -> tuple[_Before, Checkpoint]:
    from cria.engine.launch.launcher import launch, wait_until_serving

    begin = time.monotonic()
    launched = launch(command, place / "engine.log", environment=ENVIRONMENT | dict(os.environ))
    try:
        url = wait_until_serving(launched, seconds=600)
        cold_start_s = time.monotonic() - begin
        generate(url, tokens=1)
        cold_first_token_s = time.monotonic() - begin
        generation = generate(url)
        say(f"it answers with the tokens {_shown(generation)}")
        say(f"dumping it to {place / 'checkpoint'}")
        checkpoint = dump(launched.pid, place / "checkpoint", listener=listener)
    except BaseException:
        launched.process.terminate()
        raise
    launched.process.wait(timeout=30)
    processes.reap(process.pid for process in checkpoint.manifest.inventory.processes)
    _expect_silence(url)
    before = _Before(
        url=url,
        cold_start_s=cold_start_s,
        cold_first_token_s=cold_first_token_s,
        generation=generation,
    )
    return before, checkpoint


def _moves(old_port: int, new_port: int) -> Wishes:
    return Wishes.parse((f"{old_port}={new_port}",), mode="fresh")


def _shown(generation: Generation) -> str:
    return " ".join(map(str, generation.tokens))


def _expect_silence(url: str) -> None:
    try:
        generate(url, tokens=1, timeout=5)
    except Unhealthy:
        return
    raise EngineFailed(f"{url} still answers after the dump")


class _Before(msgspec.Struct, frozen=True, kw_only=True):
    """What was known of the engine before its dump."""

    url: str
    cold_start_s: float
    cold_first_token_s: float
    generation: Generation


def _facts(
    before: _Before, checkpoint: Checkpoint, engine: Engine, first_token_s: float, after: Generation
) -> DemoFacts:
    assert engine.timings is not None and engine.url is not None
    return DemoFacts(
        cold_start_s=before.cold_start_s,
        cold_first_token_s=before.cold_first_token_s,
        dump_s=checkpoint.timings.wall_seconds,
        restore_s=engine.timings.wall_seconds,
        first_token_s=first_token_s,
        checkpoint_bytes=checkpoint.size_bytes,
        ports_moved=engine.ports_moved,
        tokens_equal=bool(after.tokens) and before.generation.tokens == after.tokens,
        speedup=before.cold_first_token_s / first_token_s,
        old_url=before.url,
        url=engine.url,
        pid=engine.pid,
        tokens=after.tokens,
        dump_timings=checkpoint.timings,
        restore_timings=engine.timings,
    )
