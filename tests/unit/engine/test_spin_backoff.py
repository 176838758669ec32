"""Waiting without spinning: so many times, and then as vLLM does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
from cria_agent import spin_backoff

SHM_BROADCAST = "vllm.distributed.device_communicators.shm_broadcast"


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The naps that were taken, in microseconds; none are left from test to test."""
    taken: list[int] = []
    monkeypatch.setattr(spin_backoff, "usleep", taken.append)
    yield taken
    spin_backoff.start(count=0)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """vLLM's module, with nothing in it yet."""
    *packages, last = SHM_BROADCAST.split(".")
    for length in range(1, len(packages) + 1):
        name = ".".join(packages[:length])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType(SHM_BROADCAST)
    monkeypatch.setitem(sys.modules, SHM_BROADCAST, module)
    monkeypatch.setattr(sys.modules[".".join(packages)], last, module, raising=False)
    return module


def test_so_many_naps_are_taken_and_then_it_spins(slept: list[int]) -> None:
    spun: list[None] = []
    wait = spin_backoff.with_backoff(lambda: spun.append(None))

    wait()
    spin_backoff.start(count=2)
    for _ in range(5):
        wait()

    assert len(slept) == 2
    assert len(spun) == 4


@pytest.mark.parametrize("cores", [1, 3])
def test_a_core_is_told_to_nap_from_the_api_server(slept: list[int], cores: int) -> None:
    wait = spin_backoff.with_backoff(lambda: pytest.fail("it spun"))
    parallel = SimpleNamespace(data_parallel_size_local=cores, local_world_size=2)
    core = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))

    spin_backoff.back_off(core)
    wait()

    assert slept == [spin_backoff.BACKOFF_MICROSECONDS]
    assert spin_backoff.process_count(core.vllm_config) == 1 + 3 * cores


def test_where_processors_are_too_few_it_naps_until_there_are_more(
    slept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    processors = {0, 1}
    monkeypatch.setattr(spin_backoff.os, "sched_getaffinity", lambda _pid: processors)
    monkeypatch.setattr(spin_backoff, "BACKOFF_COUNT", 3)
    spun: list[None] = []
    wait = spin_backoff.with_backoff(lambda: spun.append(None))

    spin_backoff.start(processes=3, count=3)
    for _ in range(10):
        wait()
    assert (len(slept), len(spun)) == (10, 0)

    processors.add(2)
    for _ in range(10):
        wait()
    assert len(slept) == 12, "those that were left"


def test_vllm_is_taught_once(vllm: ModuleType) -> None:
    vllm.sched_yield = lambda: None  # type: ignore[attr-defined]

    spin_backoff.patch()
    taught = vllm.sched_yield
    spin_backoff.patch()

    assert vllm.sched_yield is taught


def test_a_vllm_that_waits_otherwise_is_left_alone(vllm: ModuleType) -> None:
    spin_backoff.patch()

    assert not hasattr(vllm, "sched_yield")
