"""The same as tests/integration/test_gpu.py on a real GPU, with sizes and times printed (pytest -s)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import cria
from cria.engine.launch.launcher import Launched
from cria.gpu import driver, memory
from cria.gpu.ranks import Ranks
from cria.system.procfs import tree
from tests.integration.conftest import ask, wait_for

pytestmark = pytest.mark.gpu
MIB = int(os.environ.get("CRIA_GPU_TEST_MIB", "2048"))


@pytest.fixture
def on_gpu(start: Callable[..., Launched], free_port: Callable[[], int]) -> tuple[Launched, int]:
    lacking = driver.unavailable_reason()
    if lacking is not None:
        pytest.skip(lacking)
    if find_spec("torch") is None:
        pytest.skip("needs torch with CUDA: pip install torch")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this torch finds no GPU: pip install torch, and look at nvidia-smi")
    port = free_port()
    return start("torch_on_gpu.py", port, MIB), port


def timed(what: str, call: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    answer = call()
    seconds = time.perf_counter() - begin
    print(f"{what}: {seconds:.2f} s, {MIB / seconds:.0f} MiB/s")
    return answer


def test_memory_comes_off_the_gpu_and_back(on_gpu: tuple[Launched, int]) -> None:
    launched, port = on_gpu
    before = ask(port)
    known = driver.load()
    pids = [process.pid for process in tree(launched.pid) if known.has_context(process.pid)]
    ranks = Ranks(known, pids)

    timed("off the GPU", lambda: ranks.reach("checkpointed"))
    assert pids and list(memory.open_gpu_descriptors(pids)) == []
    resident = sum(p.memory.resident for p in tree(launched.pid)) >> 20
    timed("back on it", lambda: ranks.reach("running"))

    print(f"{len(pids)} processes, {resident} MiB on the host meanwhile")
    assert resident > MIB
    assert ask(port) == before


@pytest.mark.root
def test_it_goes_through_criu_and_computes_the_same(
    on_gpu: tuple[Launched, int], tmp_path: Path, ended_after: list[int]
) -> None:
    launched, port = on_gpu
    before = ask(port)

    checkpoint = timed("dump", lambda: cria.dump(launched.pid, tmp_path / "it", any_process=True))
    launched.process.wait(timeout=60)
    print(f"{checkpoint.size_bytes >> 20} MiB on disk")
    engine = timed("restore", checkpoint.restore)
    ended_after.append(engine.pid)

    for step in (*checkpoint.timings.steps, *engine.timings.steps):
        print(f"  {step.seconds:8.3f} s  {step.name}")
    assert ask(port) == before


@pytest.mark.root
def test_one_that_lives_on_computes_the_same(on_gpu: tuple[Launched, int], tmp_path: Path) -> None:
    launched, port = on_gpu
    before = ask(port)

    cria.dump(launched.pid, tmp_path / "it", any_process=True, leave_running=True)

    wait_for(lambda: ask(port) == before)
