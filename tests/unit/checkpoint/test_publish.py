"""A checkpoint on its way from its staged directory to its name, and back when something goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.checkpoint import layout
from cria.errors import GpuLost
from cria.events import Event, Warned
from cria.operations.dump import publish
from cria.operations.dump.state import DumpState
from cria.requests import DumpRequest


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def state(tmp_path: Path, events: list[Event]) -> DumpState:
    request = DumpRequest(
        output=tmp_path / "checkpoint", leave_running=True, listener=events.append
    )
    state = DumpState(request)
    publish.stage_checkpoint(state)
    return state


@pytest.mark.parametrize("named", [True, False], ids=["after it got its name", "before"])
def test_a_failure_while_it_gets_its_name_leaves_nothing(
    state: DumpState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    def fail(staged: Path, output: Path) -> None:
        if named:
            staged.rename(output)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(layout, "publish", fail)
    with pytest.raises(OSError, match="Input"):
        publish.publish_checkpoint(state)

    publish.withdraw_checkpoint(state)
    publish.discard_checkpoint(state)

    assert list(tmp_path.iterdir()) == []


def test_the_images_of_an_engine_that_lost_its_gpus_are_kept_and_named(
    state: DumpState, events: list[Event]
) -> None:
    state.lost = GpuLost("process 7 lost its GPU")

    publish.discard_checkpoint(state)

    assert state.staged.images.is_dir()
    (warned,) = events
    assert isinstance(warned, Warned)
    assert str(state.staged.path) in warned.message


def test_of_one_that_was_published_nothing_is_said(state: DumpState, events: list[Event]) -> None:
    """That its engine lost its GPUs is told last of all, as an error."""
    state.lost = GpuLost("process 7 lost its GPU")
    publish.publish_checkpoint(state)

    publish.withdraw_checkpoint(state)
    publish.discard_checkpoint(state)

    assert state.staged.output.is_dir()
    assert events == []
