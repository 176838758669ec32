"""The action script: whoever has a container checkpointed, its engine stands still meanwhile and goes on after."""

from __future__ import annotations

import contextlib
import json
import tarfile
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.kubernetes.conftest import REPOSITORY, Container
from tests.kubernetes.cri import Cri
from tests.kubernetes.runtime import wait_for

CONTROL = "/tmp/cria-0123456789abcdef.sock"
ACTION = REPOSITORY / "hooks" / "criu" / "criu-action"


def get(port: int, path: str = "state") -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=20) as answer:
        return json.load(answer)


class Request(threading.Thread):
    """A request that is in flight from `start` on; `answer` is there after `join`."""

    def __init__(self, port: int, steps: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._steps = steps
        self.answer: dict[str, int] = {}
        self.start()
        wait_for(lambda: get(port)["generating"])

    def run(self) -> None:
        with contextlib.suppress(OSError):  # its server may be ended
            self.answer = get(self._port, f"generate/{self._steps}")


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A container that serves HTTP on `port` and has the part of cria that is inside an engine."""

    container: Container
    port: int


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """CRIU's configuration for one container, as the annotation org.criu.config names it."""
    conf = tmp_path / "criu.conf"
    conf.write_text(f"action-script {ACTION}\ntcp-established\nskip-in-flight\n")
    return conf


@pytest.fixture
def serving(
    container: Callable[..., Container], free_port: Callable[[], int], conf: Path
) -> Serving:
    port = free_port()
    annotations = {"org.criu.config": str(conf)}
    running = container("generating.py", port, CONTROL, annotations=annotations)
    return Serving(container=running, port=port)


def dump_log(archive: Path) -> str:
    with tarfile.open(archive) as tar:
        log = tar.extractfile("dump.log")
        assert log is not None
        return log.read().decode()


def test_a_container_is_checkpointed_at_a_still_point_while_it_serves(
    serving: Serving, checkpoint: Callable[[Container], Path]
) -> None:
    request = Request(serving.port, steps=40)

    archive = checkpoint(serving.container)

    assert "cria: 1 engine(s) at a still point" in dump_log(archive)
    request.join(timeout=20)
    assert request.answer == {"steps": 40, "pauses": 1}, (
        "paused while it was in flight, and completed"
    )
    after = get(serving.port)
    assert (after["pauses"], after["quiesced"], after["resumes"]) == (1, 1, 1)
    assert not after["paused"]


def test_the_restored_copy_wakes_up_at_its_still_point_and_goes_on(
    serving: Serving,
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
    cri: Cri,
) -> None:
    request = Request(serving.port, steps=1000)
    archive = checkpoint(serving.container)
    cri.StopContainer(container_id=serving.container.id)
    request.join(timeout=20)

    restore(archive, serving.container)

    assert get(serving.port, "generate/2") == {"steps": 2, "pauses": 0}
    after = get(serving.port)
    assert (after["pauses"], after["resumes"], after["paused"]) == (1, 1, False)


def test_a_container_without_cria_inside_passes(
    container: Callable[..., Container], checkpoint: Callable[[Container], Path], conf: Path
) -> None:
    annotations = {"org.criu.config": str(conf)}
    running = container("controlled.py", "/tmp/no-engine.sock", annotations=annotations)

    archive = checkpoint(running)

    assert "Running pre-dump scripts" in dump_log(archive)
    assert "cria:" not in dump_log(archive)
