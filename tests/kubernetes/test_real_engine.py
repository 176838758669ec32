"""A real vLLM engine in a container, with the host's Python; all tests use this one engine, in their order."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cria.demo import ENVIRONMENT, make_model, serve_command
from cria.engine.http_api import Generation, generate
from cria.engine.launch.launcher import engine_settings
from cria.errors import Unhealthy
from cria.kubernetes.archive.remap import remap
from cria.kubernetes.kubelet.quiesce import QuiesceOptions
from tests.kubernetes.conftest import HOST_NETWORK, Container, Sandboxes, host_mounts
from tests.kubernetes.cri import Cri
from tests.kubernetes.runtime import wait_for
from tests.kubernetes.test_checkpoint import FakeKubelet, kubelet
from tests.kubernetes.test_criu_action import dump_log, dumped_at, on_the_node

__all__ = ["kubelet", "on_the_node"]
pytestmark = pytest.mark.engine
TOKENS = 400
LONG = 900  # tokens that take some seconds, for requests in flight
RUNTIME_DEFAULT = {"seccomp": {"profile_type": 0}}  # it hides io_uring, as Kubernetes' default does


@contextlib.contextmanager
def shared_memory() -> Iterator[str]:
    """Yield a directory for /dev/shm, as an emptyDir in memory: a sandbox's own 64 MiB are too few for an engine."""
    place = tempfile.mkdtemp(prefix="cria-test-", dir="/dev/shm")
    try:
        yield place
    finally:
        shutil.rmtree(place)


def container_of(model: Path, port: int, shm: str) -> dict[str, Any]:
    """Return a container as `cria run` would start it, of an image that has vLLM."""
    command = serve_command(model, port)
    environment = ENVIRONMENT | {"HOME": "/root", "USER": "root"}
    environment |= {
        setting.name: setting.value for setting in engine_settings(command, environment)
    }
    return {
        "command": command,
        "envs": [{"key": name, "value": text.encode()} for name, text in environment.items()],
        "mounts": [
            *host_mounts(),
            {"container_path": str(model), "host_path": str(model), "readonly": True},
            {"container_path": "/dev/shm", "host_path": shm},
        ],
        "linux": {"security_context": HOST_NETWORK | RUNTIME_DEFAULT},
    }


@pytest.fixture(scope="module")
def engine(
    sandboxes_with_logs_in: Callable[[Path], Sandboxes],
    run_container: Callable[..., Container],
    base_image: str,
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Container]:
    place = tmp_path_factory.mktemp("engine")
    with shared_memory() as shm, sandboxes_with_logs_in(place) as make_sandbox:
        fields = container_of(make_model(place), free_port(), shm)
        engine = run_container(make_sandbox(), base_image, **fields)
        engine.wait_for_output("controlled by cria at", seconds=600)
        wait_until_it_answers(url_of(engine))
        yield engine


@pytest.fixture
def other_volumes(engine: Container) -> Iterator[dict[str, Any]]:
    """The engine's mounts for another pod, whose /dev/shm is another volume, and empty."""
    with shared_memory() as place:
        mounts = [
            mount | {"host_path": place} if mount["container_path"] == "/dev/shm" else mount
            for mount in engine.fields["mounts"]
        ]
        yield {"mounts": mounts}


@pytest.fixture(autouse=True)
def with_action_script(on_the_node: Callable[..., str]) -> None:
    on_the_node("install")


class Generating(threading.Thread):
    """A generation in flight; `ended` is when it ended, in the seconds of time.time()."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.generation: Generation | None = None
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        self.generation = generate(self._url, tokens=LONG, timeout=300)
        self.ended = time.time()


def test_the_api_server_s_checkpoint_lets_its_requests_complete(
    engine: Container, kubelet: FakeKubelet
) -> None:
    alone = generate(url_of(engine), tokens=LONG)
    busy = Generating(url_of(engine))
    time.sleep(alone.seconds / 8)

    result = kubelet.checkpoint(kubelet.add(engine), QuiesceOptions(python=sys.executable))

    busy.join(timeout=300)
    assert busy.generation is not None
    assert busy.generation.tokens == alone.tokens
    manifest = result.manifest
    (quiesced,) = manifest.quiesce.engines
    assert quiesced.dropped_bytes > 1 << 29, "its KV cache is not in the archive"
    assert manifest.checked.pages_bytes > 0
    assert manifest.checked.bytes < 3 << 30


def test_the_engine_and_its_copy_on_other_ports_generate_the_same(
    engine: Container,
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
    other_volumes: dict[str, Any],
    tmp_path: Path,
) -> None:
    alone = generate(url_of(engine), tokens=TOKENS).tokens
    port = int(url_of(engine).rpartition(":")[2])
    archive = checkpoint(engine)

    done = remap(archive, tmp_path / "new.tar", ports={port: port + 1})
    restore(done.path, engine, **other_volumes)

    copy = f"http://127.0.0.1:{port + 1}"
    wait_until_it_answers(copy)
    assert generate(copy, tokens=TOKENS).tokens == alone
    assert generate(url_of(engine), tokens=TOKENS).tokens == alone
    assert done.needs == (), "its shared memory came in the archive"
    assert len(done.plan.ports.moved_ports) == len(done.plan.ports.listeners) > 10


def test_the_engine_is_checkpointed_while_it_generates_and_restored_in_another_pod(
    engine: Container,
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
    cri: Cri,
) -> None:
    """The last test: it stops the engine of this module."""
    alone = generate(url_of(engine), tokens=LONG)
    busy = Generating(url_of(engine))
    time.sleep(alone.seconds / 8)

    assert busy.is_alive()
    archive = checkpoint(engine)

    busy.join(timeout=300)
    assert busy.generation is not None
    assert busy.ended > dumped_at(archive), "it was in flight when the engine was quiesced"
    assert busy.generation.tokens == alone.tokens
    assert "cria: 1 engine(s) quiesced" in dump_log(archive)
    assert "goes on by itself" not in engine.log.read_text(), "the action script resumed it"

    cri.StopContainer(container_id=engine.id)
    copy = restore(archive, engine)

    wait_until_it_answers(url_of(copy))
    assert generate(url_of(copy), tokens=LONG).tokens == alone.tokens


def url_of(engine: Container) -> str:
    command = engine.fields["command"]
    return f"http://127.0.0.1:{command[command.index('--port') + 1]}"


def wait_until_it_answers(url: str) -> None:
    def answers() -> bool:
        with contextlib.suppress(Unhealthy):
            return bool(generate(url, tokens=1).tokens)
        return False

    wait_for(answers, seconds=300)
