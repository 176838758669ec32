"""Steps run in order, are timed, and are undone in reverse when one fails."""

import time

import pytest

from cria.events import StepFailed, StepFinished, StepStarted, StepUndone
from cria.operation import Step, run_steps


def recording(name: str, log: list[str], *, fails: bool = False, undo: bool = True) -> Step[None]:
    def run(_context: None) -> None:
        log.append(f"run {name}")
        if fails:
            raise ValueError(name)

    return Step(
        name, name, run, undo=(lambda _context: log.append(f"undo {name}")) if undo else None
    )


def test_all_steps_run_in_order_and_nothing_is_undone_on_success() -> None:
    log: list[str] = []

    run_steps("test", [recording("a", log), recording("b", log)], None)

    assert log == ["run a", "run b"]


def test_a_failing_step_and_those_before_it_are_undone_in_reverse() -> None:
    log: list[str] = []
    steps = [
        recording("a", log),
        recording("b", log, undo=False),
        recording("c", log, fails=True),
        recording("d", log),
    ]

    with pytest.raises(ValueError, match="c"):
        run_steps("test", steps, None)

    assert log == ["run a", "run b", "run c", "undo c", "undo a"]


def test_an_interrupt_is_undone_like_a_failure() -> None:
    log: list[str] = []

    def interrupted(_context: None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps("test", [recording("a", log), Step("b", "b", interrupted)], None)

    assert log == ["run a", "undo a"]


def test_an_undo_that_fails_does_not_keep_the_others_from_running() -> None:
    log: list[str] = []

    def bad_undo(_context: None) -> None:
        raise OSError("undo")

    steps = [
        recording("a", log),
        Step("b", "b", lambda _c: None, undo=bad_undo),
        recording("c", log, fails=True),
    ]

    with pytest.raises(OSError, match="undo"):
        run_steps("test", steps, None)

    assert log == ["run a", "run c", "undo c", "undo a"]


def test_timings_add_up_to_the_wall_time() -> None:
    timings = run_steps("test", [Step("sleep", "sleep", lambda _c: time.sleep(0.02))], None)

    assert timings.seconds("sleep") >= 0.02
    accounted = sum(step.seconds for step in timings.steps)
    assert timings.wall_seconds == pytest.approx(accounted + timings.unaccounted_seconds)
    assert timings.unaccounted_seconds >= 0


def test_a_listener_hears_every_turn() -> None:
    heard: list[object] = []
    steps = [recording("a", []), recording("b", [], fails=True)]

    with pytest.raises(ValueError, match="b"):
        run_steps("test", steps, None, listener=heard.append)

    kinds = [(type(event), getattr(event, "step", None)) for event in heard]
    assert kinds == [
        (StepStarted, "a"),
        (StepFinished, "a"),
        (StepStarted, "b"),
        (StepFailed, "b"),
        (StepUndone, "b"),
        (StepUndone, "a"),
    ]


def test_the_bytes_a_step_moved_are_kept_with_its_time() -> None:
    timings = run_steps("test", [Step("copy", "copy", lambda _c: 4096)], None)

    assert timings.steps[0].bytes == 4096


def test_a_step_that_is_not_wanted_leaves_no_trace() -> None:
    log: list[str] = []
    told: list[object] = []
    unwanted = recording("a", log)
    unwanted.when = lambda _context: False
    wanted = recording("b", log, fails=True)
    wanted.when = lambda _context: True

    with pytest.raises(ValueError, match="b"):
        run_steps("test", [unwanted, wanted], None, listener=told.append)

    assert log == ["run b", "undo b"]
    assert not [event for event in told if getattr(event, "step", "") == "a"]
