"""What holds of every plan, over many generated topologies of sockets."""

from __future__ import annotations

import os
from collections import Counter
from random import Random

import pytest
import topologies
from hypothesis import given, settings
from hypothesis import strategies as st

from cria.errors import PortPlanRefused, PortTaken, PortUnknown
from cria.model.socket import overlap
from cria.network.planner import plan, plan_clones
from cria.network.requests import PortRequests

# Run more of them, or other ones: CRIA_TOPOLOGIES=1000000 CRIA_SEED=7 pytest -k properties
MANY = int(os.environ.get("CRIA_TOPOLOGIES", "5000"))
SEED = int(os.environ.get("CRIA_SEED", "1"))


def run(random: Random) -> str:
    """Plan for one topology and check the plan; what became of it."""
    sockets = topologies.topology(random)
    there = topologies.in_use(random, sockets)
    asked = topologies.wishes(random, sockets)
    policy = "keep" if random.random() < 0.1 else "close"
    try:
        made = plan(sockets, there, asked, outside=policy, clients=policy)
    except (PortPlanRefused, PortTaken, PortUnknown) as error:
        # Where everything may move and nothing is asked for, there is always a way.
        free = asked.mode in {"auto", "fresh"} and not asked.ports and not asked.addresses
        assert not free or policy == "keep", error.message
        assert error.message
        return error.code
    topologies.check(sockets, there, asked, made)
    if random.random() < 0.1:
        random.shuffle(sockets)
        random.shuffle(there)
        again = plan(sockets, there, asked, outside=policy, clients=policy)
        assert {m.id: m.new for m in again} == {m.id: m.new for m in made}, "order matters"
        assert {m.id: m.new_peer for m in again} == {m.id: m.new_peer for m in made}
    return "planned"


@pytest.mark.many
def test_the_properties_hold_for_thousands_of_topologies() -> None:
    outcomes = Counter(run(Random(f"{SEED}/{number}")) for number in range(MANY))
    assert outcomes["planned"] > MANY * 0.4, outcomes
    assert outcomes["port-taken"] and outcomes["port-plan-refused"], outcomes


@pytest.mark.many
def test_the_properties_hold_for_a_hundred_thousand_topologies() -> None:
    random = Random(SEED)
    outcomes = Counter(run(random) for _ in range(100_000))
    assert outcomes["planned"] > 40_000, outcomes


@given(seed=st.integers(0, 2**64))
@settings(max_examples=100, deadline=None)
def test_clones_never_meet_each_other_nor_the_original(seed: int) -> None:
    random = Random(seed)
    sockets = topologies.topology(random)
    there = topologies.in_use(random, sockets)
    plans = plan_clones(sockets, 3, there, PortRequests(mode="auto"), outside="close")
    for first, made in enumerate(plans):
        topologies.check(sockets, there, PortRequests(mode="auto"), made)
        for other in plans[:first]:
            for move in made:
                for its in other:
                    if move.stands and its.stands:
                        assert not topologies.alike(
                            topologies.spot(move, new=True), topologies.spot(its, new=True)
                        )


@given(
    one=st.sampled_from(["0.0.0.0", "::", *topologies.V4, *topologies.V6, "::ffff:127.0.0.1"]),
    other=st.sampled_from(["0.0.0.0", "::", *topologies.V4, *topologies.V6, "::ffff:10.0.0.5"]),
    duals=st.tuples(st.booleans(), st.booleans()),
)
def test_addresses_overlap_where_they_answer_the_same_packets(
    one: str, other: str, duals: tuple[bool, bool]
) -> None:
    first, second = ((1, "tcp", 5, a, d) for a, d in zip((one, other), duals, strict=True))
    assert overlap(one, duals[0], other, duals[1]) == topologies.alike(first, second)


@given(seed=st.integers(0, 2**64))
@settings(max_examples=50, deadline=None)
def test_where_nothing_is_in_use_nothing_moves_unasked(seed: int) -> None:
    sockets = topologies.topology(Random(seed))
    for mode in ("as-needed", "keep", "auto"):
        made = plan(sockets, (), PortRequests(mode=mode), outside="keep", clients="keep")
        assert not made.changes
        assert made.moved_ports == {}


def test_a_generated_topology_is_not_trivial() -> None:
    random = Random(5)
    counts = Counter(len(topologies.topology(random)) for _ in range(300))
    assert max(counts) > 8
    kinds = Counter(
        move.kind for _ in range(300) for move in plan(topologies.topology(random), outside="close")
    )
    assert {"listener", "bound", "accepted", "outgoing", "client", "outside"} <= set(kinds)
