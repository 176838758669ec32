"""A lazy restore that cannot work or gains nothing is refused before anything is changed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cria.checkpoint.handle import Checkpoint
from cria.errors import CriuUnsuitable, PrivilegeMissing, UsageError
from cria.events import Timings
from cria.memory.lazy import userfaultfd
from cria.memory.lazy.userfaultfd import Obstacle
from cria.operations.checks import host, preflight
from cria.operations.restore import lazy
from cria.operations.restore.state import OpenedState
from cria.requests import RestoreRequest

NO_KERNEL = Obstacle(why="this kernel has no userfaultfd(2)", remedy="use another")
NOT_PERMITTED = Obstacle(why="not permitted", remedy="grant CAP_SYS_PTRACE", privilege=True)


def opened_state(path: Path, *, gpus: object = None, share: bool = False) -> OpenedState:
    """Open a restore with as much of a checkpoint as the check reads."""
    state = OpenedState(RestoreRequest(path, lazy=True, share_memory=share))
    manifest: Any = SimpleNamespace(gpu_state=gpus)
    state.checkpoint = Checkpoint(
        path, manifest, timings=Timings(wall_seconds=0, unaccounted_seconds=0, steps=())
    )
    return state


@pytest.fixture
def userfaultfd_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userfaultfd, "find_obstacle", lambda: None)


@pytest.mark.usefixtures("userfaultfd_allowed")
def test_a_plain_checkpoint_can_be_restored_lazily(tmp_path: Path) -> None:
    lazy.check(opened_state(tmp_path))


@pytest.mark.usefixtures("userfaultfd_allowed")
@pytest.mark.parametrize(
    ("why", "options"), [("GPUs", {"gpus": object()}), ("shared", {"share": True})]
)
def test_a_restore_that_gains_nothing_is_refused(
    tmp_path: Path, why: str, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="--lazy") as refused:
        lazy.check(opened_state(tmp_path, **options))

    assert why in (refused.value.details or "")


@pytest.mark.usefixtures("userfaultfd_allowed")
def test_compressed_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()

    with pytest.raises(UsageError) as refused:
        lazy.check(opened_state(tmp_path))

    assert "compressed" in (refused.value.details or "")


@pytest.mark.parametrize(
    ("obstacle", "error"), [(NO_KERNEL, CriuUnsuitable), (NOT_PERMITTED, PrivilegeMissing)]
)
def test_a_host_that_cannot_restore_lazily_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, obstacle: Obstacle, error: type
) -> None:
    monkeypatch.setattr(userfaultfd, "find_obstacle", lambda: obstacle)

    with pytest.raises(error) as refused:
        preflight.lazy()
    (row,) = host.lazy(tmp_path)

    assert refused.value.details == obstacle.why
    assert (row.level, row.value, row.remedy) == ("warn", obstacle.why, obstacle.remedy)
