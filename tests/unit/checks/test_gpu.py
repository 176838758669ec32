"""What the doctor says of GPUs, of a stand-in for the driver."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cria.errors import CudaUnsuitable
from cria.gpu import driver
from cria.gpu.driver import Device
from cria.model.manifest import GpuState
from cria.operations.checks import descriptors, engine, gpu
from tests.cuda_standin import StandIn
from tests.cuda_standin import gpu as card

from .builders import device, inventory, process

NVIDIA = "NVRM version: NVIDIA UNIX {}  {}  Thu Jan  9 03:15:00 UTC 2025\nGCC version:  gcc 13.3\n"
HELD = inventory(process(10), descriptors=(device("/dev/nvidia0", 195),))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that this host has a driver and these GPUs."""

    def pretend(*devices: Device, version: tuple[int, ...] = (580, 65), ranks: Any = (10,)) -> None:
        monkeypatch.setattr(driver, "version", lambda: version)
        monkeypatch.setattr(driver, "has_cuda_core", lambda: True)
        monkeypatch.setattr(driver, "load", lambda: StandIn(ranks, devices=devices))

    return pretend


@pytest.mark.parametrize("kind", ["x86_64 Kernel Module", "Open Kernel Module for x86_64"])
def test_the_version_of_the_driver(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert driver.version(file) is None
    file.write_text(NVIDIA.format(kind, "570.86.10"))

    assert driver.version(file) == (570, 86, 10)


def test_a_host_without_a_gpu_is_not_blamed() -> None:
    rows = list(gpu.host(Path()))

    if driver.version() is None:
        assert [row.level for row in rows] == ["skip"]


@pytest.mark.parametrize(("version", "level"), [((550, 54), "warn"), ((570, 86), "ok")])
def test_the_checkpoint_api_came_with_driver_570(
    version: tuple[int, ...], level: str, here: Any
) -> None:
    here(Device(gpu=card(0)), version=version)

    row = next(gpu.host(Path()))
    assert (row.subject, row.level) == ("GPU driver", level)


def test_a_missing_package_is_named_with_its_command(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here()
    monkeypatch.setattr(driver, "has_cuda_core", lambda: False)

    row = list(gpu.host(Path()))[-1]
    assert ".[cuda]" in (row.remedy or "")
    blocked = next(gpu.engine(HELD))
    assert blocked.level == "fail" and blocked.kind is CudaUnsuitable
    assert ".[cuda]" in blocked.value and (blocked.pid, blocked.fd) == (10, 5)


def test_mig_and_persistence_are_told_by_gpu(here: Any) -> None:
    here(Device(gpu=card(0), mig=True), Device(gpu=card(1), persistent=False), Device(gpu=card(2)))

    levels = {row.subject: (row.level, row.remedy) for row in gpu.host(Path())}
    assert levels["GPU 0"] == ("warn", f"nvidia-smi -mig 0 -i {card(0).uuid}")
    assert levels["GPU 1"] == ("warn", f"nvidia-smi -pm 1 -i {card(1).uuid}")
    assert levels["GPU 2"] == ("ok", None)


def test_an_engine_without_gpus_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "unavailable_reason", lambda: pytest.fail("asked for a driver"))

    assert list(gpu.engine(inventory())) == []
    assert list(gpu.sharing(inventory())) == []


def test_an_engine_with_gpus_is_no_blocker_where_they_can_be_taken(here: Any) -> None:
    here(Device(gpu=card(0), used={10: 3 << 30}))

    (row,) = gpu.engine(HELD)
    assert row.level == "ok" and "3072 MiB" in row.value
    assert list(descriptors.devices(HELD)) == []
    assert gpu.engine in engine.ENGINE_CHECKS


def test_what_lies_on_the_gpus_must_find_room_on_the_host(here: Any) -> None:
    here(Device(gpu=card(0), used={10: 1 << 60}))

    assert next(gpu.engine(HELD)).subject == "too little memory for what lies on its GPUs"


def test_a_part_of_a_gpu_cannot_be_taken(here: Any) -> None:
    here(Device(gpu=card(0), mig=True, used={10: 1}))

    assert "MIG" in next(gpu.engine(HELD)).value


def test_ranks_that_may_share_memory_are_told_with_what_is_missing() -> None:
    held = inventory(
        process(10, command=("vllm", "serve", "m", "-tp", "2")),
        descriptors=(
            device("/dev/nvidia0", 195),
            device("/dev/nvidia-caps-imex-channels/channel0", 508),
        ),
    )

    shared, fabric = gpu.sharing(held)
    assert "NCCL_P2P_DISABLE=1" in shared.value and "--disable-custom-all-reduce" in shared.value
    assert "NVLink fabric" in fabric.subject


def test_a_checkpoint_says_whether_its_gpus_are_here(here: Any) -> None:
    state = GpuState(ranks=(10,), gpus=(card(0),), driver="580.1", taken_bytes=1)
    opened: Any = SimpleNamespace(manifest=SimpleNamespace(gpu_state=state))

    here(Device(gpu=card(0)))
    assert next(gpu.checkpoint(opened)).value == "all 1 are here"
    here(Device(gpu=card(3)))
    assert next(gpu.checkpoint(opened)).value == "1 become others"
    here()
    assert next(gpu.checkpoint(opened)).level == "fail"
