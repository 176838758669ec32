"""The action script quiesces an engine for every checkpoint of its container, and resumes it."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from tests.kubernetes.conftest import REPOSITORY, Container
from tests.kubernetes.cri import Cri
from tests.kubernetes.runtime import Containerd, wait_for

CONTROL = "/tmp/cria-0123456789abcdef.sock"
ACTION = REPOSITORY / "hooks" / "criu" / "criu-action"


def get(port: int, path: str = "state") -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=20) as answer:
        return json.load(answer)


class Request(threading.Thread):
    """A request that is in flight when this is constructed; `answer` is set after `join`."""

    def __init__(self, port: int, steps: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._steps = steps
        self.answer: dict[str, int] = {}
        self.start()
        wait_for(lambda: get(port)["generating"])

    def run(self) -> None:
        with contextlib.suppress(OSError):  # the server may have ended
            self.answer = get(self._port, f"generate/{self._steps}")


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A container that serves HTTP on `port` and has cria's agent, as an engine has."""

    container: Container
    port: int


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """CRIU's configuration for one container, which the annotation org.criu.config names."""
    conf = tmp_path / "criu.conf"
    conf.write_text(f"action-script {ACTION}\ntcp-established\nskip-in-flight\n")
    return conf


@pytest.fixture
def serve(
    container: Callable[..., Container], free_port: Callable[[], int]
) -> Callable[..., Serving]:
    def start(program: str = "generating.py", **fields: Any) -> Serving:
        port = free_port()
        return Serving(container=container(program, port, CONTROL, **fields), port=port)

    return start


@pytest.fixture
def serving(serve: Callable[..., Serving], conf: Path) -> Serving:
    return serve(annotations={"org.criu.config": str(conf)})


@pytest.fixture
def on_the_node(containerd: Containerd) -> Iterator[Callable[..., str]]:
    """Run `cria kubernetes node ...` on the node itself, and `remove` at the end."""

    def cria(*arguments: object) -> str:
        command = [sys.executable, "-m", "cria", "kubernetes", "node"]
        result = containerd.in_its_namespaces(*command, *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    yield cria
    cria("remove")


def dump_log(archive: Path) -> str:
    with tarfile.open(archive) as tar:
        log = tar.extractfile("dump.log")
        assert log is not None
        return log.read().decode()


def dumped_at(archive: Path) -> float:
    """Return when CRIU had written the end of its log, in the seconds of time.time()."""
    with tarfile.open(archive) as tar:
        return tar.getmember("dump.log").mtime


def test_the_engine_is_quiesced_for_a_checkpoint_while_it_serves(
    serving: Serving, checkpoint: Callable[[Container], Path]
) -> None:
    request = Request(serving.port, steps=40)

    archive = checkpoint(serving.container)

    assert "cria: 1 engine(s) quiesced" in dump_log(archive)
    request.join(timeout=60)
    assert request.answer == {"steps": 40, "pauses": 1}, (
        "the request was in flight at the pause, and completed"
    )
    after = get(serving.port)
    assert (after["pauses"], after["quiesced"], after["resumes"]) == (1, 1, 1)
    assert not after["paused"]


def test_a_restored_copy_is_resumed(
    serving: Serving,
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
    cri: Cri,
) -> None:
    request = Request(serving.port, steps=1000)
    archive = checkpoint(serving.container)
    cri.StopContainer(container_id=serving.container.id)
    request.join(timeout=60)

    restore(archive, serving.container)

    assert get(serving.port, "generate/2") == {"steps": 2, "pauses": 0}
    after = get(serving.port)
    assert (after["pauses"], after["resumes"], after["paused"]) == (1, 1, False)


def test_its_shared_memory_is_restored_in_another_pod(
    on_the_node: Callable[..., str],
    serve: Callable[..., Serving],
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
    cri: Cri,
) -> None:
    on_the_node("install")
    serving = serve("sharing.py")
    get(serving.port, "generate/1")
    archive = checkpoint(serving.container)
    get(serving.port, "generate/1")
    later = get(serving.port)
    cri.StopContainer(container_id=serving.container.id)

    restore(archive, serving.container)

    copy = get(serving.port)
    assert (later["first"], later["last"]) == (2, 2)
    assert (copy["first"], copy["last"]) == (1, 1), "as at the dump"
    assert "cria: saved 1 file(s) of /dev/shm" in dump_log(archive)


def test_a_container_without_an_agent_is_dumped(
    container: Callable[..., Container], checkpoint: Callable[[Container], Path], conf: Path
) -> None:
    annotations = {"org.criu.config": str(conf)}
    running = container("controlled.py", "/tmp/no-engine.sock", annotations=annotations)

    archive = checkpoint(running)

    assert "Running pre-dump scripts" in dump_log(archive)
    assert "cria:" not in dump_log(archive)


def test_installed_on_a_node_it_works_for_every_container(
    on_the_node: Callable[..., str],
    containerd: Containerd,
    serve: Callable[..., Serving],
    checkpoint: Callable[[Container], Path],
) -> None:
    installed = on_the_node("install").split()
    serving = serve()
    request = Request(serving.port, steps=20)

    archive = checkpoint(serving.container)
    on_the_node("remove")
    client = socket.create_connection(("127.0.0.1", serving.port))
    with client, pytest.raises(grpc.RpcError, match="criu failed"):
        checkpoint(serving.container)  # no option keeps the connection any more
    request.join(timeout=60)
    without = checkpoint(serving.container)

    assert installed[-1] == "/etc/criu/runc.conf"
    assert "engine(s) quiesced" in dump_log(archive)
    assert request.answer == {"steps": 20, "pauses": 1}
    assert get(serving.port)["pauses"] == 1, "and no more after the removal"
    assert "cria:" not in dump_log(without)
    remaining = [*(containerd.node / "etc").glob("criu*"), *(containerd.node / "opt").iterdir()]
    assert not remaining, "nothing remains on the node"


@pytest.mark.parametrize("on_failure", ["refuse", "pass"])
def test_an_engine_that_cannot_be_quiesced_is_refused_or_dumped_as_it_is(
    on_failure: str,
    on_the_node: Callable[..., str],
    containerd: Containerd,
    serve: Callable[..., Serving],
    checkpoint: Callable[[Container], Path],
) -> None:
    on_the_node("install", "--inflight", "drain", "--seconds", "0.3", "--on-failure", on_failure)
    serving = serve()
    request = Request(serving.port, steps=100)

    if on_failure == "refuse":
        with pytest.raises(grpc.RpcError, match="criu failed"):
            checkpoint(serving.container)
        log = next(containerd.state.rglob("criu-dump.log")).read_text()
    else:
        log = dump_log(checkpoint(serving.container))

    assert "did not pause (drain) within 0.3 s" in log
    assert ("the dump is refused" in log) == (on_failure == "refuse")
    request.join(timeout=60)
    assert request.answer == {"steps": 100, "pauses": 0}
    assert not get(serving.port)["paused"]


def test_a_node_without_criu_says_so(
    start_containerd: Callable[..., Containerd], base_image: str, tmp_path: Path
) -> None:
    containerd = start_containerd(criu=tmp_path)
    cri = Cri(containerd.socket)

    with pytest.raises(grpc.RpcError, match="CRIU binary not found"):
        cri.CheckpointContainer(container_id="any", location=str(tmp_path / "archive.tar"))
