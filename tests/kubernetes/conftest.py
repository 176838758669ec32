"""A node without a cluster: a real containerd, called as the kubelet calls it. Nothing of it outlives the tests.

def test(sandbox, container, checkpoint, restore):
    engine = container("controlled.py", "/tmp/cria-0123456789abcdef.sock")
    archive = checkpoint(engine)        # what the kubelet's checkpoint API writes
    copy = restore(archive, engine)     # in a pod sandbox of its own
    assert copy.pid                     # in the PID namespace of this host
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from tests.kubernetes import runtime
from tests.kubernetes.cri import Cri
from tests.kubernetes.registry import Registry, layer
from tests.kubernetes.runtime import Containerd, wait_for

REPOSITORY = Path(__file__).parents[2]
HOST_NETWORK = {"namespace_options": {"network": 2}}  # NODE: shares the network of the host
numbers = itertools.count()
Sandboxes = AbstractContextManager[Callable[..., "Sandbox"]]


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's sandbox; each of its containers must repeat the `config` of its creation."""

    id: str
    config: dict[str, Any]


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """A container that runs; `pid` is its first process, in the PID namespace of this host.

    `fields` are those of its ContainerConfig that a copy must repeat: command, mounts and so on.
    """

    id: str
    name: str
    pid: int
    sandbox: Sandbox
    log: Path
    fields: dict[str, Any]

    def wait_for_output(self, word: str, seconds: float = 60.0) -> None:
        def ended() -> bool:
            return not Path(f"/proc/{self.pid}").exists()

        try:
            wait_for(lambda: word in self.log.read_text(), ended, seconds)
        except AssertionError as error:
            raise AssertionError(
                f"{self.name} does not print {word!r}:\n{self.log.read_text()}"
            ) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.containerd)


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """Images on loopback: `pause`, and `base`, which borrows the host's /usr and has busybox."""
    registry = Registry()
    yield registry
    registry.close()


@pytest.fixture(scope="session")
def pause_image(registry: Registry) -> str:
    command = ["/busybox", "sleep", "1000000"]
    return registry.add("pause", layer({"busybox": runtime.BUSYBOX}), Entrypoint=command)


@pytest.fixture(scope="session")
def base_image(registry: Registry) -> str:
    links: dict[str, Path | str | None] = {
        name: f"usr/{name}" for name in ("bin", "lib", "lib64", "sbin")
    }
    directories = dict.fromkeys(("usr", "tmp", "etc", "root", "proc", "sys", "dev"))
    return registry.add("base", layer(directories | links | {"busybox": runtime.BUSYBOX}))


@pytest.fixture(scope="session")
def start_containerd(pause_image: str) -> Iterator[Callable[..., Containerd]]:
    """Start a containerd; all that were started are ended after the session."""
    running: list[Containerd] = []
    remove_state_of_killed_sessions()

    def start(**options: Any) -> Containerd:
        state = Path(tempfile.mkdtemp(prefix=f"cria-node-{os.getpid()}-"))
        running.append(Containerd(state, pause_image, **options))
        return running[-1]

    yield start
    for containerd in running:
        containerd.end()


def remove_state_of_killed_sessions() -> None:
    for state in Path(tempfile.gettempdir()).glob("cria-node-*-*"):
        if not Path(f"/proc/{state.name.split('-')[2]}").exists():
            runtime.remove(state)


@pytest.fixture(scope="session")
def containerd(start_containerd: Callable[..., Containerd]) -> Containerd:
    return start_containerd()


@pytest.fixture(scope="session")
def cri(containerd: Containerd, base_image: str) -> Iterator[Cri]:
    cri = Cri(containerd.socket)
    cri.PullImage(image={"image": base_image})
    yield cri
    cri.close()


@contextmanager
def sandboxes(cri: Cri, containerd: Containerd, logs: Path) -> Iterator[Callable[..., Sandbox]]:
    """Make pod sandboxes in the host's network; they end with the context, and their containers with them."""
    made: list[Sandbox] = []

    def make(name: str | None = None, namespace: str = "default") -> Sandbox:
        name = name or f"pod-{next(numbers)}"
        config = {
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
            "log_directory": str(logs),
            "linux": {
                "cgroup_parent": f"{containerd.cgroup}/{name}",
                "security_context": HOST_NETWORK,
            },
        }
        sandbox_id = cri.RunPodSandbox(config=config).pod_sandbox_id
        made.append(Sandbox(id=sandbox_id, config=config))
        return made[-1]

    try:
        yield make
    finally:
        for sandbox in made:
            cri.StopPodSandbox(pod_sandbox_id=sandbox.id)
            cri.RemovePodSandbox(pod_sandbox_id=sandbox.id)


@pytest.fixture(scope="session")
def sandboxes_with_logs_in(cri: Cri, containerd: Containerd) -> Callable[[Path], Sandboxes]:
    """Make sandboxes that outlive a test."""
    return partial(sandboxes, cri, containerd)


@pytest.fixture
def make_sandbox(
    sandboxes_with_logs_in: Callable[[Path], Sandboxes], tmp_path: Path
) -> Iterator[Callable[..., Sandbox]]:
    """Make a pod sandbox that lasts until the test is over."""
    with sandboxes_with_logs_in(tmp_path) as make:
        yield make


@pytest.fixture
def sandbox(make_sandbox: Callable[..., Sandbox]) -> Sandbox:
    return make_sandbox()


@pytest.fixture(scope="session")
def run_container(cri: Cri, containerd: Containerd) -> Callable[..., Container]:
    """Create and start a container of `image` in `sandbox`; other fields as in CRI's ContainerConfig."""

    def run(sandbox: Sandbox, image: str, **fields: Any) -> Container:
        name = f"container-{next(numbers)}"
        config = {
            "metadata": {"name": name},
            "image": {"image": image},
            "log_path": f"{name}.log",
            "linux": {"security_context": HOST_NETWORK},
            **fields,
        }
        container_id = cri.CreateContainer(
            pod_sandbox_id=sandbox.id, config=config, sandbox_config=sandbox.config
        ).container_id
        cri.StartContainer(container_id=container_id)
        status = cri.ContainerStatus(container_id=container_id, verbose=True)
        pid = containerd.pid_on_the_host(json.loads(status.info["info"])["pid"])
        log = Path(sandbox.config["log_directory"]) / f"{name}.log"
        return Container(
            id=container_id, name=name, pid=pid, sandbox=sandbox, log=log, fields=fields
        )

    return run


@pytest.fixture
def container(
    run_container: Callable[..., Container],
    base_image: str,
    request: pytest.FixtureRequest,
    programs: Path,
) -> Callable[..., Container]:
    """Run a program of tests/programs in a container, with the host's Python, until it says ready."""

    def run(
        program: str,
        *arguments: object,
        sandbox: Sandbox | None = None,
        mounts: Sequence[dict[str, Any]] = (),
        **fields: Any,
    ) -> Container:
        sandbox = sandbox or request.getfixturevalue("sandbox")
        command = [sys.executable, str(programs / program), *map(str, arguments)]
        mounts = [*host_mounts(), *mounts]
        running = run_container(sandbox, base_image, command=command, mounts=mounts, **fields)
        running.wait_for_output("ready")
        return running

    return run


def host_mounts() -> list[dict[str, Any]]:
    """Return the mounts that a Python of the host needs: the system's libraries, itself, this repository; read-only."""
    paths = {Path("/usr"), Path(sys.base_prefix), Path(sys.prefix), REPOSITORY}
    tops = [path for path in sorted(paths) if not paths & set(path.parents)]
    return [
        {"container_path": str(path), "host_path": str(path), "readonly": True} for path in tops
    ]


@pytest.fixture
def checkpoint(cri: Cri, containerd: Containerd, tmp_path: Path) -> Callable[[Container], Path]:
    """Checkpoint a container as the kubelet does; it runs on. Returns the archive, a tar."""

    def take(container: Container) -> Path:
        archive = tmp_path / f"checkpoint-{container.name}-{next(numbers)}.tar"
        try:
            cri.CheckpointContainer(container_id=container.id, location=str(archive))
        except grpc.RpcError as error:
            error.add_note(containerd.why_criu_failed())
            raise
        return archive

    return take


@pytest.fixture
def restore(
    run_container: Callable[..., Container], make_sandbox: Callable[..., Sandbox]
) -> Callable[..., Container]:
    """Restore an archive as a container like the one it was taken of, in another sandbox.

    This is what a node does for a pod whose container names the archive as its image, all else unchanged.
    """

    def restore(
        archive: Path, like: Container, *, sandbox: Sandbox | None = None, **changes: Any
    ) -> Container:
        return run_container(sandbox or make_sandbox(), str(archive), **like.fields | changes)

    return restore
