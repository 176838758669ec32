"""The processes of an engine that use CUDA go from running to checkpointed and back together: all, or none.

Two of them wait for each other in every collective, so all are locked before one is checkpointed, and all
have their memory back before one runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from cria.gpu.driver import Call, Driver, DriverCalls, DriverRefused, State

Goal = Literal["running", "checkpointed"]
Action = Literal["lock", "checkpoint", "restore", "unlock"]

# From which state an action leads to which; whoever is elsewhere has no need of it.
TRANSITIONS: dict[Goal, tuple[tuple[State, Action, State], ...]] = {
    "checkpointed": (("running", "lock", "locked"), ("locked", "checkpoint", "checkpointed")),
    "running": (("checkpointed", "restore", "locked"), ("locked", "unlock", "running")),
}
_GRACE_SECONDS = 5.0  # the driver keeps the limit of a lock itself


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a call may take: a lock waits for submitted work, the others copy memory."""

    lock: float = 30.0
    copy: float = 300.0


class GoalMissed(Exception):
    """Ranks did not reach a goal. `reasons` says why, `states` where each is now, None where unknown."""

    def __init__(
        self, goal: Goal, reasons: Mapping[int, str], states: Mapping[int, State | None]
    ) -> None:
        super().__init__(f"{goal} was not reached: {dict(reasons)}, {dict(states)}")
        self.goal = goal
        self.reasons = reasons
        self.states = states

    @property
    def undone(self) -> bool:
        """Whether every rank is where it was before."""
        return set(self.states.values()) == {_other(self.goal)}


class Ranks:
    """Those processes of one engine that use CUDA."""

    def __init__(
        self,
        driver: Driver,
        pids: Iterable[int],
        *,
        limits: Limits | None = None,
        gpu_map: Mapping[str, str] | None = None,
    ) -> None:
        self.pids = tuple(pids)
        self._driver = driver
        self._limits = limits or Limits()
        self._gpu_map = gpu_map or {}
        self._calls = DriverCalls()

    def reach(self, goal: Goal) -> None:
        """Bring every rank to `goal`; one that is there already is left alone.

        Raises Trouble after having brought all ranks back where they were, or, where one cannot go
        back, on to the goal with all that can. A rank that failed, or whose call never returns, takes
        no part in that.
        """
        self._calls.wait(self.pids, self._limits.copy)  # those of an attempt that was interrupted
        reasons = self._go(goal)
        if self._all_at(goal):
            return
        self._calls.wait(self.pids, self._limits.copy)  # late is better than out of step
        for way in (_other(goal), goal, _other(goal)):
            reasons = self._go(way) | reasons
            if self._together():
                break
        if not self._all_at(goal):
            raise GoalMissed(goal, reasons, self.states())

    def states(self) -> dict[int, State | None]:
        """Where each rank is now; None where a call is under way still or the driver does not say."""
        return {pid: self._state(pid) for pid in self.pids}

    def _go(self, goal: Goal) -> dict[int, str]:
        """One way, action by action; no rank begins the second unless all have done the first.

        The state decides and not the answer: an action that is refused to a rank which has arrived
        has done its work. Returns what was said by those that have not.
        """
        for before, action, after in TRANSITIONS[goal]:
            there = [pid for pid, state in self.states().items() if state == before]
            wrong = self._calls.make(
                {pid: self._call(action, pid) for pid in there}, self._seconds(action)
            )
            missed = {p: f"{action}: {e}" for p, e in wrong.items() if self._state(p) != after}
            if missed:
                return missed
        return {pid: f"is {state}" for pid, state in self.states().items() if state != goal}

    def _all_at(self, goal: Goal) -> bool:
        return all(state == goal for state in self.states().values())

    def _together(self) -> bool:
        """Whether all that can still move are in one state, and not half-way."""
        able = {state for state in self.states().values() if state not in (None, "failed")}
        return len(able) <= 1 and "locked" not in able

    def _seconds(self, action: Action) -> float:
        return self._limits.lock + _GRACE_SECONDS if action == "lock" else self._limits.copy

    def _call(self, action: Action, pid: int) -> Call:
        def call() -> None:
            if action == "lock":
                self._driver.lock(pid, int(self._limits.lock * 1000))
            elif action == "restore":
                self._driver.restore(pid, self._gpu_map)
            else:
                getattr(self._driver, action)(pid)

        return call

    def _state(self, pid: int) -> State | None:
        if self._calls.wait((pid,), 0):
            return None
        try:
            return self._driver.state(pid)
        except DriverRefused:
            return None


def _other(goal: Goal) -> Goal:
    return "checkpointed" if goal == "running" else "running"
