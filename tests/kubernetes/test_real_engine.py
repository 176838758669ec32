"""A real vLLM engine in a container, with the host's Python, is checkpointed while it generates."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cria.demo import ENVIRONMENT, make_model, serve_command
from cria.engine.generate import Generation, generate
from cria.engine.launch import settings
from cria.errors import Unhealthy
from tests.kubernetes.conftest import HOST_NETWORK, Container, Sandbox, host_mounts
from tests.kubernetes.cri import Cri
from tests.kubernetes.runtime import wait_for
from tests.kubernetes.test_criu_action import dump_log, on_the_node

__all__ = ["on_the_node"]
pytestmark = pytest.mark.engine
TOKENS = 400
RUNTIME_DEFAULT = {"seccomp": {"profile_type": 0}}  # it hides io_uring, as Kubernetes' default does


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """What a pod has as an emptyDir in memory: the 64 MiB of a sandbox's own are too few for an engine."""
    place = Path(tempfile.mkdtemp(prefix="cria-test-", dir="/dev/shm"))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def fields(shared_memory: Path, free_port: Callable[[], int], tmp_path: Path) -> dict[str, Any]:
    """A container as `cria run` would start it, of an image that has vLLM."""
    model = make_model(tmp_path)
    command = serve_command(model, free_port())
    environment = ENVIRONMENT | {"HOME": "/root", "USER": "root"}
    environment |= {each.name: each.value for each in settings(command, environment)}
    return {
        "command": command,
        "envs": [{"key": name, "value": text.encode()} for name, text in environment.items()],
        "mounts": [
            *host_mounts(),
            {"container_path": str(model), "host_path": str(model), "readonly": True},
            {"container_path": "/dev/shm", "host_path": str(shared_memory)},
        ],
        "linux": {"security_context": HOST_NETWORK | RUNTIME_DEFAULT},
    }


class Generating(threading.Thread):
    """A generation that is in flight."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.generation: Generation | None = None
        self.start()

    def run(self) -> None:
        self.generation = generate(self._url, tokens=TOKENS)


@pytest.fixture
def engine(
    sandbox: Sandbox,
    run_container: Callable[..., Container],
    base_image: str,
    fields: dict[str, Any],
) -> Container:
    engine = run_container(sandbox, base_image, **fields)
    engine.wait_until_it_says("controlled by cria at", seconds=180)
    wait_until_it_answers(url_of(engine))
    return engine


def test_it_is_checkpointed_while_it_generates_and_comes_back_in_another_pod(
    on_the_node: Callable[..., str],
    engine: Container,
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
    cri: Cri,
) -> None:
    on_the_node("install")
    alone = generate(url_of(engine), tokens=TOKENS)
    busy = Generating(url_of(engine))
    time.sleep(alone.seconds / 4)

    archive = checkpoint(engine)

    busy.join(timeout=60)
    assert busy.generation is not None
    assert busy.generation.seconds > alone.seconds + 1, (
        "it was in flight when the engine stood still"
    )
    assert busy.generation.tokens == alone.tokens
    assert "cria: 1 engine(s) at a still point" in dump_log(archive)
    assert "goes on by itself" not in engine.log.read_text(), "it was told to go on"

    cri.StopContainer(container_id=engine.id)
    copy = restore(archive, engine)

    assert generate(url_of(copy), tokens=TOKENS).tokens == alone.tokens


def url_of(engine: Container) -> str:
    command = engine.fields["command"]
    return f"http://127.0.0.1:{command[command.index('--port') + 1]}"


def wait_until_it_answers(url: str) -> None:
    def answers() -> bool:
        with contextlib.suppress(Unhealthy):
            return bool(generate(url, tokens=1).tokens)
        return False

    wait_for(answers, seconds=120)
