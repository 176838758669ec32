"""What is said of an engine whose GPU memory cannot be taken, and that one without GPUs loads nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cria.errors import CudaUnsuitable, GpuNotGiven
from cria.gpu import driver, memory
from cria.gpu.ranks import GoalMissed
from cria.model.inventory import Role
from cria.model.manifest import GpuState
from tests.cuda_standin import StandIn, gpu
from tests.unit.checks.builders import inventory, process

ENGINE = inventory(process(11, role=Role(name="worker", confidence="certain")), process(12))


def test_a_rank_that_failed_is_named_with_its_part_and_what_that_means() -> None:
    trouble = GoalMissed("checkpointed", {11: "checkpoint: no"}, {11: "failed", 12: "running"})

    assert memory.describe(trouble, ENGINE).splitlines() == [
        "process 11 (worker): failed: the driver met an error from which this process cannot recover;"
        " checkpoint: no",
        "process 12: running",
    ]


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("lock: CUDA_ERROR_NOT_READY: ...", "at a still point"),
        ("restore: CUDA checkpointing is not supported by the installed driver", "cria run"),
        ("checkpoint: no answer in 300 s", "--gpu-seconds"),
    ],
)
def test_the_remedy_follows_the_drivers_words(said: str, cure: str) -> None:
    assert cure in str(
        memory.suggest_remedy(GoalMissed("checkpointed", {11: said}, {11: "running"}))
    )


def test_processes_that_the_driver_does_not_know_get_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "load", lambda: StandIn([]))
    state = GpuState(ranks=(1, 2), gpus=(gpu(0),), driver="580", taken_bytes=0)

    with pytest.raises(GpuNotGiven, match="does not know"):
        memory.restore(state, os.getpid())


def test_a_host_without_a_driver_says_so() -> None:
    if driver.version() is None:
        with pytest.raises(CudaUnsuitable) as raised:
            driver.load()
        assert "no NVIDIA driver" in str(raised.value.details)


def test_nothing_of_cuda_is_loaded_until_there_is_a_gpu() -> None:
    program = (
        "import sys, cria.operations.dump.steps, cria.operations.restore.steps, cria.operations.replicas, cria.operations.checks.diagnosis, cria.gpu.memory\n"
        "print(sorted({'cuda', 'numpy'} & {name.split('.')[0] for name in sys.modules}))"
    )

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert ran.stdout == "[]\n"
