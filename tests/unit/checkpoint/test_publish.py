"""A checkpoint on its way from its staged directory to its name, and back when something goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.checkpoint import layout
from cria.errors import GpuLost
from cria.events import Event, Warned
from cria.model.manifest import IMAGES
from cria.operations.dump import publish
from cria.operations.dump.state import Dump


@pytest.fixture
def work(tmp_path: Path) -> Dump:
    work = Dump(target=None, port=None, output=tmp_path / "checkpoint", leave_running=True)
    publish.stage_the_checkpoint(work)
    return work


@pytest.mark.parametrize("named", [True, False], ids=["after it got its name", "before"])
def test_a_failure_while_it_gets_its_name_leaves_nothing(
    work: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    def fail(staged: Path, output: Path) -> None:
        if named:
            staged.rename(output)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(layout, "publish", fail)
    with pytest.raises(OSError, match="Input"):
        publish.publish_it(work)

    publish.take_it_back(work)
    publish.discard_the_checkpoint(work)

    assert list(tmp_path.iterdir()) == []


def test_the_images_of_an_engine_that_lost_its_gpus_are_kept_and_named(work: Dump) -> None:
    heard: list[Event] = []
    work.listener = heard.append
    work.lost = GpuLost("process 7 lost its GPU")

    publish.discard_the_checkpoint(work)

    assert work.staged is not None
    assert (work.staged / IMAGES).is_dir()
    (warned,) = heard
    assert isinstance(warned, Warned)
    assert str(work.staged) in warned.message


def test_of_one_that_was_published_nothing_is_said(work: Dump) -> None:
    """That its engine lost its GPUs is told last of all, as an error."""
    heard: list[Event] = []
    work.listener = heard.append
    work.lost = GpuLost("process 7 lost its GPU")
    publish.publish_it(work)

    publish.take_it_back(work)
    publish.discard_the_checkpoint(work)

    assert work.output.is_dir()
    assert heard == []
