"""Whatever goes wrong, with whichever rank: all end running, or all checkpointed; those that cannot are named."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cria.gpu.driver import DriverCalls
from cria.gpu.ranks import Goal, GoalMissed, Limits, Ranks
from tests.cuda_standin import MOVES, Fault, StandIn

PIDS = (11, 12, 13)
SHORT = Limits(lock=0.02, copy=0.02)
LONG = Limits(lock=10.0, copy=10.0)
HOWS = ("refuse", "fail", "hang", "slow", "moved")


@pytest.fixture(autouse=True)
def little_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cria.gpu.ranks._GRACE_SECONDS", 0.0)


@pytest.fixture
def drivers() -> Iterator[list[StandIn]]:
    made: list[StandIn] = []
    yield made
    for driver in made:
        driver.released.set()


def reach(driver: StandIn, goal: Goal, pids: tuple[int, ...] = PIDS) -> GoalMissed | None:
    late = any(fault.how in ("hang", "slow") for fault in driver.faults)
    try:
        Ranks(driver, pids, limits=SHORT if late else LONG).reach(goal)
    except GoalMissed as trouble:
        return trouble
    return None


def together(driver: StandIn, trouble: GoalMissed | None) -> set[str]:
    """The states of all ranks but those that are named as lost; the promise is that this is one state."""
    lost = {pid for pid, s in (trouble.states if trouble else {}).items() if s in (None, "failed")}
    assert trouble is None or lost <= set(trouble.reasons), "a lost rank is named"
    return {state for pid, state in driver.states.items() if pid not in lost}


def test_all_are_locked_before_one_is_checkpointed_and_back_before_one_runs() -> None:
    driver = StandIn(PIDS)
    ranks = Ranks(driver, PIDS, limits=LONG)

    ranks.reach("checkpointed")
    ranks.reach("running")

    order = [action for action, _ in itertools.groupby(call[0] for call in driver.calls)]
    assert order == ["lock", "checkpoint", "restore", "unlock"]
    assert set(driver.states.values()) == {"running"}


def test_who_has_arrived_is_not_asked_again() -> None:
    driver = StandIn(PIDS)

    assert reach(driver, "running") is None
    assert driver.calls == []


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("action", MOVES)
@pytest.mark.parametrize("pid", PIDS)
def test_one_fault_leaves_no_two_ranks_in_different_states(
    pid: int, action: str, how: str, drivers: list[StandIn]
) -> None:
    goal: Goal = "checkpointed" if action in ("lock", "checkpoint") else "running"
    driver = StandIn(PIDS, [Fault(pid, action, how)], state="running")
    drivers.append(driver)
    if goal == "running":
        driver.states = dict.fromkeys(PIDS, "checkpointed")

    trouble = reach(driver, goal)

    assert len(together(driver, trouble)) == 1
    assert together(driver, trouble) <= {"running", "checkpointed"}
    if how == "moved":
        assert trouble is None
    if how == "refuse":
        assert trouble is not None and trouble.undone
        assert pid in trouble.reasons
    if how == "fail":
        assert trouble is not None and trouble.states[pid] == "failed"
    if how == "hang":
        assert trouble is not None and trouble.states[pid] is None


@pytest.mark.parametrize("how", ["refuse", "fail"])
@pytest.mark.parametrize("undo", ["restore", "unlock"])
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(PIDS, 2)))
def test_a_rank_that_cannot_go_back_takes_the_others_forward_with_it(
    first: int, second: int, undo: str, how: str
) -> None:
    """The checkpoint of one is refused, and another one cannot be given back what it had."""
    faults = [Fault(first, "checkpoint", "refuse"), Fault(second, undo, how, None)]
    driver = StandIn(PIDS, faults)

    trouble = reach(driver, "checkpointed")

    assert len(together(driver, trouble)) == 1


def test_a_rank_that_had_failed_before_is_named_and_the_others_run() -> None:
    driver = StandIn(PIDS)
    driver.states[12] = "failed"

    trouble = reach(driver, "checkpointed")

    assert trouble is not None
    assert trouble.states == {11: "running", 12: "failed", 13: "running"}
    assert "failed" in trouble.reasons[12]


def test_a_late_rank_is_waited_for_and_brought_back_with_the_others(
    drivers: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers after its time: to leave it would be to have it checkpointed while the others run."""
    driver = StandIn(PIDS, [Fault(12, "checkpoint", "slow")])
    drivers.append(driver)
    waits = 0

    def wait(calls: DriverCalls, pids: Iterable[int], seconds: float) -> set[int]:
        nonlocal waits
        if seconds and ("checkpoint", 12) in driver.calls:
            waits += 1
            if waits > 1:  # the first has run into its limit
                driver.released.set()
        return original(calls, pids, 10 if seconds and waits > 1 else seconds)

    original = DriverCalls.wait
    monkeypatch.setattr("tests.cuda_standin.SLOW_SECONDS", 30)
    monkeypatch.setattr(DriverCalls, "wait", wait)

    with pytest.raises(GoalMissed) as raised:
        Ranks(driver, PIDS, limits=Limits(lock=10.0, copy=0.1)).reach("checkpointed")

    assert "no answer" in raised.value.reasons[12]
    assert raised.value.undone
    assert set(driver.states.values()) == {"running"}


@pytest.mark.parametrize(("goal", "first", "second"), [
    ("checkpointed", "lock", "checkpoint"), ("running", "restore", "unlock"),
])  # fmt: skip
def test_nobody_goes_on_while_one_has_not_come_so_far(goal: Goal, first: str, second: str) -> None:
    before = "running" if goal == "checkpointed" else "checkpointed"
    driver = StandIn(PIDS, [Fault(12, first, "refuse", None)], state=before)

    reach(driver, goal)

    assert second not in {action for action, _ in driver.calls}


faults = st.builds(
    Fault,
    st.sampled_from(PIDS),
    st.sampled_from(sorted(MOVES)),
    st.sampled_from(["refuse", "fail", "moved"]),
    st.sampled_from([1, 2, None]),
)


@settings(max_examples=200)
@given(st.lists(faults, max_size=4), st.sampled_from(["checkpointed", "running"]))
def test_however_many_faults_what_is_left_is_told_as_it_is(wrong: list[Fault], goal: Goal) -> None:
    driver = StandIn(PIDS, wrong, state="running" if goal == "checkpointed" else "checkpointed")

    trouble = reach(driver, goal)

    if trouble is None:
        assert set(driver.states.values()) == {goal}
        return
    assert trouble.states == driver.states
    assert trouble.reasons
    mixed = {s for s in driver.states.values() if s != "failed"}
    if len(mixed) > 1 or "locked" in mixed:  # only where an action was refused at every attempt
        assert any(fault.times is None or fault.times == 0 for fault in wrong)
