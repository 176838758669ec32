"""vLLM's processes sleep for a number of waits, and then spin again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
from cria_agent import spin_backoff

SHM_BROADCAST = "vllm.distributed.device_communicators.shm_broadcast"


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sleeps of a test, in microseconds; no back-off is left for the next test."""
    sleeps: list[int] = []
    monkeypatch.setattr(spin_backoff, "usleep", sleeps.append)
    yield sleeps
    spin_backoff.start(count=0)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An empty module in place of vLLM's."""
    *packages, last = SHM_BROADCAST.split(".")
    for length in range(1, len(packages) + 1):
        name = ".".join(packages[:length])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType(SHM_BROADCAST)
    monkeypatch.setitem(sys.modules, SHM_BROADCAST, module)
    monkeypatch.setattr(sys.modules[".".join(packages)], last, module, raising=False)
    return module


def test_a_process_sleeps_for_a_number_of_waits_and_then_spins(slept: list[int]) -> None:
    spins: list[None] = []
    wait = spin_backoff.with_backoff(lambda: spins.append(None))

    wait()
    spin_backoff.start(count=2)
    for _ in range(5):
        wait()

    assert len(slept) == 2
    assert len(spins) == 4


@pytest.mark.parametrize("cores", [1, 3])
def test_an_engine_core_backs_off_when_the_api_server_asks(slept: list[int], cores: int) -> None:
    wait = spin_backoff.with_backoff(lambda: pytest.fail("it spins"))
    parallel = SimpleNamespace(data_parallel_size_local=cores, local_world_size=2)
    core = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))

    spin_backoff.back_off(core)
    wait()

    assert slept == [spin_backoff.BACKOFF_MICROSECONDS]
    assert spin_backoff.process_count(core.vllm_config) == 1 + 3 * cores


def test_an_oversubscribed_process_backs_off_until_there_are_more_processors(
    slept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    processors = {0, 1}
    monkeypatch.setattr(spin_backoff.os, "sched_getaffinity", lambda _pid: processors)
    monkeypatch.setattr(spin_backoff, "BACKOFF_COUNT", 3)
    spins: list[None] = []
    wait = spin_backoff.with_backoff(lambda: spins.append(None))

    spin_backoff.start(processes=3, count=3)
    for _ in range(10):
        wait()
    assert (len(slept), len(spins)) == (10, 0)

    processors.add(2)
    for _ in range(10):
        wait()
    assert len(slept) == 12, "the back-offs that were left"


def test_vllm_is_patched_once(vllm: ModuleType) -> None:
    vllm.sched_yield = lambda: None  # type: ignore[attr-defined]

    spin_backoff.patch()
    patched = vllm.sched_yield
    spin_backoff.patch()

    assert vllm.sched_yield is patched


def test_a_vllm_without_sched_yield_stays_as_it_is(vllm: ModuleType) -> None:
    spin_backoff.patch()

    assert not hasattr(vllm, "sched_yield")
