"""Waiting without spinning: so many times, and then as vLLM does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from cria_inside import naps

SHM_BROADCAST = "vllm.distributed.device_communicators.shm_broadcast"


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The naps that were taken, in seconds; none are left from test to test."""
    taken: list[float] = []
    monkeypatch.setattr(naps.time, "sleep", taken.append)
    yield taken
    naps.begin(0)


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


def test_so_many_naps_are_taken_and_then_it_spins(slept: list[float]) -> None:
    spun: list[None] = []
    wait = naps.napping(lambda: spun.append(None))

    wait()
    naps.begin(2)
    for _ in range(5):
        wait()

    assert len(slept) == 2
    assert len(spun) == 4


def test_a_core_is_told_to_nap_from_the_api_server(slept: list[float]) -> None:
    wait = naps.napping(lambda: pytest.fail("it spun"))

    naps.nap(object())
    wait()

    assert slept == [naps.NAP_SECONDS]


def test_vllm_is_taught_once(vllm: ModuleType) -> None:
    vllm.sched_yield = lambda: None  # type: ignore[attr-defined]

    naps.teach()
    taught = vllm.sched_yield
    naps.teach()

    assert vllm.sched_yield is taught


def test_a_vllm_that_waits_otherwise_is_left_alone(vllm: ModuleType) -> None:
    naps.teach()

    assert not hasattr(vllm, "sched_yield")
