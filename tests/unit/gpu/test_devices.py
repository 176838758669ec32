"""Onto which GPUs an engine comes back, and what is said where it cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.errors import CheckpointMismatch, UsageError
from cria.gpu import devices
from cria.gpu.driver import Device
from tests.cuda_standin import StandIn, gpu
from tests.unit.checks.builders import device, inventory, process

A, B, C, D = (gpu(n) for n in range(4))


def test_the_same_gpus_need_no_map_in_whatever_order_they_are_found() -> None:
    assert devices.map_gpus([A, B], [B, C, A]) == {}


def test_what_is_here_stays_and_what_is_gone_takes_a_free_one() -> None:
    assert devices.map_gpus([A, B], [C, B]) == {A.uuid: C.uuid, B.uuid: B.uuid}


def test_a_wish_is_kept_and_the_rest_goes_round_it() -> None:
    assert devices.map_gpus([A, B], [A, B], {A.uuid: B.uuid}) == {A.uuid: B.uuid, B.uuid: A.uuid}


def test_gpus_that_were_only_seen_are_in_the_map_as_far_as_there_is_room() -> None:
    assert devices.map_gpus([A], [C, B], others=[B, D]) == {A.uuid: C.uuid, B.uuid: B.uuid}


@pytest.mark.parametrize(
    "here", [[], [gpu(7, "L4")], [gpu(7, gib=80)]], ids=["none", "another kind", "less memory"]
)
def test_no_gpu_in_its_place_is_said_with_both_sides(here: list) -> None:
    with pytest.raises(CheckpointMismatch, match=A.uuid) as raised:
        devices.map_gpus([A], here)

    assert A.name in str(raised.value.details)
    assert all(g.uuid in str(raised.value.details) for g in here)


def test_an_older_driver_cannot_exchange_them() -> None:
    assert devices.map_gpus([A], [A], driver=(570, 1)) == {}
    with pytest.raises(CheckpointMismatch, match="only the GPUs it had"):
        devices.map_gpus([A], [B], driver=(570, 1))


@pytest.mark.parametrize(
    "wish", [{"GPU-x": A.uuid}, {A.uuid: "GPU-x"}, {A.uuid: C.uuid, B.uuid: C.uuid}]
)
def test_a_wish_that_makes_no_sense_is_refused(wish: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        devices.map_gpus([A, B], [A, B, C], wish)


def test_wishes_are_read_with_and_without_the_prefix() -> None:
    assert devices.parse_gpu_map(["GPU-1=2"]) == {"GPU-1": "GPU-2"}
    with pytest.raises(UsageError):
        devices.parse_gpu_map(["GPU-1"])


some = st.lists(st.integers(0, 7), unique=True, min_size=1, max_size=8)


@given(some, some)
def test_a_map_is_whole_and_one_to_one_or_there_is_none(old: list[int], new: list[int]) -> None:
    recorded, here = [gpu(n) for n in old], [gpu(n) for n in new]
    if len(here) < len(recorded):
        with pytest.raises(CheckpointMismatch):
            devices.map_gpus(recorded, here)
        return

    mapping = devices.map_gpus(recorded, here)

    if mapping:
        assert set(mapping) == {g.uuid for g in recorded}
        assert len(set(mapping.values())) == len(recorded)
        assert set(mapping.values()) <= {g.uuid for g in here}
    else:
        assert {g.uuid for g in recorded} <= {g.uuid for g in here}


def test_ranks_are_those_holders_that_the_driver_knows() -> None:
    held = inventory(
        process(10), process(11), descriptors=(device("/dev/nvidia0", 195), device("/dev/null", 1))
    )

    assert devices.uses_gpus(held)
    assert devices.cuda_processes(held, StandIn([10, 11])) == (10,)
    assert devices.cuda_processes(held, StandIn([])) == ()
    assert not devices.uses_gpus(inventory(descriptors=(device("/dev/null", 1),)))


def test_the_gpus_of_an_engine_are_those_it_computes_on_or_all_where_nobody_says() -> None:
    seen = [Device(gpu=A, used={10: 1}), Device(gpu=B, used={99: 1})]

    assert devices.split_used([10, 11], seen) == ((A,), (B,))
    assert devices.split_used([55], seen) == ((A, B), ())
