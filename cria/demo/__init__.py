"""Show what cria does with a tiny model on the CPU: start, generate, dump, restore on other ports, generate again."""

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
from cria.engine.launch.launcher import launch, wait_until_serving
from cria.errors import EngineFailed, Unhealthy
from cria.events import Listener, Timings
from cria.network.requests import PortRequests
from cria.network.reservation import reserve_any
from cria.system import processes

Say = Callable[[str], None]

# One OpenMP thread for each rank: threads that wait for a processor hold up the end of each multiplication. vLLM
# leaves a processor to its other processes too when it binds threads by itself, which it cannot do on few.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class DemoFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo measured in one run: seconds, bytes, and whether the tokens were the same.

    `cold_start_s` and `restore_s` end when the engine is healthy. `cold_first_token_s` and `first_token_s` are the
    times to the first generated token, from the start of the engine and from the start of the restore.
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


class _ColdStart(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of the engine before its dump."""

    url: str
    healthy_s: float
    first_token_s: float
    generation: Generation


def demo(
    directory: str | os.PathLike[str] | None = None,
    *,
    tensor_parallel: int = 1,
    keep: bool = False,
    say: Say = lambda _line: None,
    listener: Listener | None = None,
) -> DemoFacts:
    """Run the demo in `directory` (a temporary one by default) and return what was measured.

    With `keep` the restored engine goes on running. `say` gets a line at each stage. Needs the CPU build of vLLM
    beside cria, or a Python with one in $CRIA_DEMO_PYTHON. Raises a CriaError.
    """
    with tempfile.TemporaryDirectory(prefix="cria-demo-", ignore_cleanup_errors=keep) as scratch:
        chosen = Path(scratch if directory is None else directory).resolve()
        chosen.mkdir(parents=True, exist_ok=True)
        with processes.orphans_adopted():
            return _run(chosen, tensor_parallel, keep, say, listener)


def serve_command(model: Path, port: int | str, tensor_parallel: int = 1) -> list[str]:
    """Return the command that serves the tiny model on the CPU."""
    return [
        engine_python(),
        "-m",
        "vllm.entrypoints.openai.api_server",
        *("--model", str(model), "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"),
        *("--tensor-parallel-size", str(tensor_parallel)),
    ]


def make_model(directory: Path, *, hidden: int = 256) -> Path:
    """Make the tiny random model in `directory`, unless it is there; its size depends on its width `hidden`.

    Raises EngineFailed.
    """
    model = directory / "model"
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
    """Return the path of the Python that has vLLM."""
    return os.environ.get("CRIA_DEMO_PYTHON", sys.executable)


def _run(
    directory: Path, tensor_parallel: int, keep: bool, say: Say, listener: Listener | None
) -> DemoFacts:
    say("creating a tiny model with random weights")
    model = make_model(directory)
    with reserve_any(2) as (old_port, new_port):
        say(f"starting vLLM on the CPU, port {old_port}; a cold start takes about a minute")
        command = serve_command(model, old_port, tensor_parallel)
        cold, checkpoint = _start_and_dump(command, directory, say, listener)
        say(f"the engine has ended: nothing answers at {cold.url}, the checkpoint is complete")
    say(f"restoring the engine on port {new_port}, with new ports for its other listeners")
    begin = time.monotonic()
    ports = PortRequests.parse((f"{old_port}={new_port}",), mode="fresh")
    engine = restore(checkpoint, ports=ports, listener=listener)
    try:
        url = engine.url or ""
        generate(url, tokens=1)
        first_token_s = time.monotonic() - begin
        generation = generate(url)
        say(f"{url} generates {_shown(generation)}")
    finally:
        if not keep:
            engine.stop()
    return _facts(cold, checkpoint, engine, first_token_s, generation)


def _start_and_dump(
    command: list[str], directory: Path, say: Say, listener: Listener | None
) -> tuple[_ColdStart, Checkpoint]:
    begin = time.monotonic()
    launched = launch(command, directory / "engine.log", environment=ENVIRONMENT | dict(os.environ))
    try:
        url = wait_until_serving(launched, seconds=600)
        healthy_s = time.monotonic() - begin
        generate(url, tokens=1)
        first_token_s = time.monotonic() - begin
        generation = generate(url)
        say(f"{url} generates {_shown(generation)}")
        say(f"dumping the engine to {directory / 'checkpoint'}")
        checkpoint = dump(launched.pid, directory / "checkpoint", listener=listener)
    except BaseException:
        launched.process.terminate()
        raise
    launched.process.wait(timeout=30)
    processes.reap(process.pid for process in checkpoint.manifest.inventory.processes)
    _expect_no_answer(url)
    cold = _ColdStart(
        url=url, healthy_s=healthy_s, first_token_s=first_token_s, generation=generation
    )
    return cold, checkpoint


def _shown(generation: Generation) -> str:
    return "tokens " + " ".join(map(str, generation.tokens))


def _expect_no_answer(url: str) -> None:
    try:
        generate(url, tokens=1, timeout=5)
    except Unhealthy:
        return
    raise EngineFailed(f"{url} still answers after the dump")


def _facts(
    cold: _ColdStart,
    checkpoint: Checkpoint,
    engine: Engine,
    first_token_s: float,
    generation: Generation,
) -> DemoFacts:
    return DemoFacts(
        cold_start_s=cold.healthy_s,
        cold_first_token_s=cold.first_token_s,
        dump_s=checkpoint.timings.wall_seconds,
        restore_s=engine.timings.wall_seconds if engine.timings else first_token_s,
        first_token_s=first_token_s,
        checkpoint_bytes=checkpoint.size_bytes,
        ports_moved=engine.ports_moved,
        tokens_equal=bool(generation.tokens) and cold.generation.tokens == generation.tokens,
        speedup=cold.first_token_s / first_token_s,
        old_url=cold.url,
        url=engine.url or "",
        pid=engine.pid,
        tokens=generation.tokens,
        dump_timings=checkpoint.timings,
        restore_timings=engine.timings,
    )
