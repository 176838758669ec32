"""cria's driver through the real cuda-core, onto a stand-in for libcuda that is compiled for the test.

It sees that calls, limits, UUIDs and answers arrive as cuda.h says; no GPU is needed, so that a newer
cuda-core can be tried anywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cria.gpu.driver import has_cuda_core

SOURCES = Path(__file__).parent / "standin"
LIBRARIES = {"cuda.c": "libcuda.so.1", "nvml.c": "libnvidia-ml.so.1"}
PROGRAM = """
from cria.gpu.driver import DriverRefused, Nvidia
driver = Nvidia()
for device in driver.devices():
    print(device.gpu.uuid, device.gpu.memory_bytes >> 30, device.mig, device.persistent, device.used)
print(driver.has_context(101), driver.has_context(55), driver.state(101))
for pid in 101, 102:
    driver.lock(pid, 5000)
for pid in 101, 102:
    driver.checkpoint(pid)
print(driver.state(101))
driver.restore(101, {})
driver.restore(102, {f"GPU-{'0' * 8}-0000-0000-0000-{7:012x}": f"GPU-{'0' * 8}-0000-0000-0000-{9:012x}"})
driver.unlock(101)
for call in (lambda: driver.lock(102, 5), lambda: driver.lock(101, 1), lambda: driver.unlock(55)):
    try:
        call()
    except DriverRefused as refused:
        print(str(refused).partition(":")[0])
"""
SAID = """\
GPU-00000000-0000-0000-0000-000000000001 8 False True {101: 3145728}
GPU-00000000-0000-0000-0000-000000000002 8 False False {}
True False running
checkpointed
CUDA_ERROR_ILLEGAL_STATE
CUDA_ERROR_NOT_READY
CUDA_ERROR_INVALID_VALUE
"""
DONE = """\
init 0 0
lock 101 5000
lock 102 5000
checkpoint 101 0
checkpoint 102 0
restore 101 0
restore 102 1
pair 7 9
unlock 101 0
lock 102 5
lock 101 1
unlock 55 0
"""


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    if not has_cuda_core():
        pytest.skip("needs cuda-core: pip install '.[cuda]'")
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: apt install gcc")
    for source, library in LIBRARIES.items():
        out = ["-o", str(tmp_path / library), str(SOURCES / source)]
        subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", *out, "-ldl"], check=True)
    return tmp_path


def test_every_call_arrives_as_the_driver_expects_it(libraries: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries), "STANDIN_LOG": str(log)}

    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.stdout == SAID, ran.stderr
    assert log.read_text() == DONE
