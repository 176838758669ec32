"""cria kubernetes checkpoint against a real containerd: only the HTTP between cria and the runtime is a stand-in."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cria.errors import CheckpointTimedOut, CriaError, DumpFailed, QuiesceFailed
from cria.kubernetes.kubelet.checkpoint import CheckpointOptions, checkpoint
from cria.kubernetes.kubelet.cluster import Cluster, KubeletAccess
from cria.kubernetes.kubelet.quiesce import QuiesceOptions
from cria.kubernetes.node.criu_action import find_freezer, is_frozen
from tests.conftest import PROGRAMS
from tests.kubernetes.conftest import Container, Sandbox, host_mounts
from tests.kubernetes.cri import Cri
from tests.kubernetes.fake_api_server import (
    STREAM_CANCELLED,
    ExecResult,
    FakeApiServer,
    HttpError,
    pod,
    serve_api,
)
from tests.kubernetes.runtime import PREFIX, Containerd, wait_for
from tests.kubernetes.test_criu_action import (
    CONTROL,
    Request,
    Serving,
    conf,
    dump_log,
    get,
    on_the_node,
    serve,
)

__all__ = ["conf", "on_the_node", "serve"]
HERE = QuiesceOptions(python=sys.executable)


class Kubelet:
    """A stand-in whose checkpoints are taken, and whose commands are run, by a real container runtime."""

    def __init__(self, standin: FakeApiServer, kubeconfig: Path, ca: Path, cri: Cri) -> None:
        self.standin, self.kubeconfig, self.ca, self.cri = standin, kubeconfig, ca, cri
        self.directory = kubeconfig.parent / "checkpoints"
        self.directory.mkdir(mode=0o700)
        self.ids: dict[str, str] = {}
        standin.checkpoint = self._checkpoint
        standin.run = self._run

    def show(self, container: Container) -> str:
        """Make a pod of a container; returns how cria is told of it."""
        name = container.sandbox.config["metadata"]["name"]
        described = pod(name, container.name, container_id=f"containerd://{container.id}")
        self.standin.add(described)
        self.ids[name] = container.id
        return f"default/{name}/{container.name}"

    def cluster(self) -> Cluster:
        kubelets = KubeletAccess(url=self.standin.url, ca=self.ca)
        return Cluster(kubeconfig=self.kubeconfig, kubelets=kubelets)

    def take(self, place: str, quiesce: QuiesceOptions = HERE, **options: Any) -> Any:
        try:
            return checkpoint(
                place, cluster=self.cluster(), options=CheckpointOptions(quiesce=quiesce, **options)
            )
        except CriaError as error:
            error.add_note(str(error.details))
            raise

    def _checkpoint(self, name: str, container: str, seconds: float) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        archive = self.directory / f"checkpoint-{name}_default-{container}-{moment}.tar"
        words = {"container_id": self.ids[name], "location": str(archive)}
        try:
            self.cri.CheckpointContainer(seconds=seconds, timeout=int(seconds), **words)
        except grpc.RpcError as error:
            raise HttpError(
                500, f"checkpointing of default/{name} failed ({as_go(error)})"
            ) from error
        return str(archive)

    def _run(self, name: str, container: str, command: Any) -> ExecResult:
        try:
            done = self.cri.ExecSync(container_id=self.ids[name], cmd=command, timeout=60)
        except grpc.RpcError as error:
            raise HttpError(500, f"Internal error occurred: {as_go(error)}") from error
        return done.exit_code, done.stdout.decode(), done.stderr.decode()


def as_go(error: Any) -> str:
    """As the kubelet words an error of gRPC; either side may be the first to see that the time is over."""
    if error.code() is grpc.StatusCode.CANCELLED:
        return f"rpc error: code = DeadlineExceeded desc = {STREAM_CANCELLED}"
    code = "".join(word.title() for word in error.code().name.split("_"))
    return f"rpc error: code = {code} desc = {error.details()}"


@pytest.fixture
def kubelet(tmp_path: Path, cri: Cri) -> Iterator[Kubelet]:
    with serve_api(tmp_path) as (standin, kubeconfig, ca):
        yield Kubelet(standin, kubeconfig, ca, cri)


@pytest.fixture
def annotations(tmp_path: Path) -> dict[str, str]:
    """CRIU may keep connections, and runs no action script: it is cria that brings about the still point."""
    conf = tmp_path / "without-script.conf"
    conf.write_text("tcp-established\nskip-in-flight\n")
    return {"org.criu.config": str(conf)}


@pytest.fixture
def serving(serve: Callable[..., Serving], annotations: dict[str, str]) -> Serving:
    return serve(annotations=annotations)


@pytest.fixture
def run_by_cria(
    run_container: Callable[..., Container],
    sandbox: Sandbox,
    base_image: str,
    free_port: Callable[[], int],
    annotations: dict[str, str],
) -> Serving:
    """As in hooks/kubernetes/engine.yaml: cria run is the container's first process."""
    port = free_port()
    engine = [sys.executable, str(PROGRAMS / "generating.py"), str(port), CONTROL]
    command = [sys.executable, "-m", "cria", "run", "--log", "/tmp/engine.log", "--", *engine]
    words = {"command": command, "mounts": host_mounts(), "annotations": annotations}
    running = run_container(sandbox, base_image, **words)
    running.wait_until_it_says("ready")
    return Serving(container=running, port=port)


@pytest.mark.parametrize("by", ["exec", "node"])
def test_a_container_is_checkpointed_at_a_still_point_while_it_serves(
    kubelet: Kubelet, serving: Serving, by: Any
) -> None:
    place = kubelet.show(serving.container)
    request = Request(serving.port, steps=60)

    done = kubelet.take(place, QuiesceOptions(by=by, python=sys.executable))

    request.join(timeout=60)
    assert request.answer == {"steps": 60, "pauses": 1}
    after = get(serving.port)
    assert (after["pauses"], after["quiesced"], after["resumes"]) == (1, 1, 1)
    said = done.manifest
    assert (said.quiesce.by, len(said.quiesce.engines), said.quiesce.resumed) == (by, 1, True)
    assert said.quiesce.lease_seconds == 60
    archive = Path(said.archive)
    assert said.checked.bytes == archive.stat().st_size
    assert (said.checked.runtime, said.checked.oci_runtime) == (
        "containerd",
        "io.containerd.runc.v2",
    )
    assert done.manifest_path == f"{archive}.cria.json"
    assert archive.stat().st_mode & 0o077 == 0


def test_the_archive_restores_to_an_engine_that_goes_on(
    kubelet: Kubelet, serving: Serving, restore: Callable[..., Container], cri: Cri
) -> None:
    done = kubelet.take(
        kubelet.show(serving.container), QuiesceOptions(lease_seconds=2, python=sys.executable)
    )
    cri.StopContainer(container_id=serving.container.id)

    restore(Path(done.manifest.archive), serving.container)

    assert get(serving.port)["pauses"] == 1
    wait_for(lambda: not get(serving.port)["paused"])  # its lease is over
    assert get(serving.port, "generate/2") == {"steps": 2, "pauses": 0}


def test_an_engine_that_cria_run_has_started_is_checkpointed_and_restored(
    kubelet: Kubelet, run_by_cria: Serving, restore: Callable[..., Container], cri: Cri
) -> None:
    request = Request(run_by_cria.port, steps=60)

    done = kubelet.take(kubelet.show(run_by_cria.container))
    request.join(timeout=60)
    cri.StopContainer(container_id=run_by_cria.container.id)
    restore(Path(done.manifest.archive), run_by_cria.container)

    assert request.answer == {"steps": 60, "pauses": 1}
    assert len(done.manifest.quiesce.engines) == 1
    assert get(run_by_cria.port)["pauses"] == 1


def test_with_the_node_s_hook_both_see_to_it_and_it_goes_on_once(
    kubelet: Kubelet, serve: Callable[..., Serving], conf: Path
) -> None:
    serving = serve(annotations={"org.criu.config": str(conf)})

    place = kubelet.show(serving.container)
    done = kubelet.take(place)
    by_the_hook = kubelet.take(place, QuiesceOptions(by="hook"))

    assert "at a still point" in dump_log(Path(done.manifest.archive))
    assert done.manifest.quiesce.resumed is False, "the hook had let it go on before"
    assert not get(serving.port)["paused"]
    assert by_the_hook.manifest.quiesce.by == "hook"
    assert "at a still point" in dump_log(Path(by_the_hook.manifest.archive))


def test_what_criu_refuses_is_told_and_the_engine_goes_on(
    kubelet: Kubelet, serve: Callable[..., Serving]
) -> None:
    serving = serve()
    place = kubelet.show(serving.container)
    client = socket.create_connection(("127.0.0.1", serving.port))

    with client, pytest.raises(DumpFailed) as caught:
        kubelet.take(place)

    assert "criu failed" in str(caught.value.details)
    print(caught.value.details)
    assert str(caught.value.log).endswith(".log")
    after = get(serving.port)
    assert (after["pauses"], after["resumes"], after["paused"]) == (1, 1, False)
    assert not list(kubelet.directory.iterdir())


def test_a_node_without_criu_is_told_how_to_get_it(
    kubelet: Kubelet,
    serving: Serving,
    start_containerd: Callable[..., Containerd],
    tmp_path: Path,
) -> None:
    place = kubelet.show(serving.container)
    without = Cri(start_containerd(criu=tmp_path).socket)
    run, kubelet.cri = kubelet.cri, without
    kubelet.standin.run = lambda *words: Kubelet._run(with_criu, *words)
    with_criu = type("", (), {"cri": run, "ids": kubelet.ids})

    with pytest.raises(DumpFailed) as caught:
        kubelet.take(place)

    assert "CRIU" in str(caught.value.details)
    assert "cria kubernetes node install" in str(caught.value.remedy)
    assert (get(serving.port)["pauses"], get(serving.port)["paused"]) == (1, False)


@pytest.mark.parametrize("here", [True, False])
def test_a_container_that_a_broken_off_checkpoint_left_frozen_runs_again(
    here: bool,
    kubelet: Kubelet,
    serving: Serving,
    containerd: Containerd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """containerd 2.1.9 leaves it so: on its node cria lets it run, elsewhere it says what to type there."""
    place = kubelet.show(serving.container)
    kubelet.standin.checkpoint = lambda *words: kubelet._checkpoint(*words[:2], 0.05)
    if not here:
        monkeypatch.setattr("cria.kubernetes.kubelet.checkpoint.thaw", lambda _found: False)

    with pytest.raises(CheckpointTimedOut) as caught:
        kubelet.take(place, QuiesceOptions(lease_seconds=1, python=sys.executable))

    if not here:
        assert is_frozen(str(find_freezer(serving.container.pid)[0])), (
            "then this test has lost its sense"
        )
        command = str(caught.value.remedy).split(": ", 1)[1].split(";")[0].split()
        ctr = (PREFIX / "bin" / "ctr", "--address", containerd.socket)
        done = containerd.in_its_namespaces(*ctr, *command[1:])
        assert done.returncode == 0, done.stderr
    wait_for(lambda: not get(serving.port)["paused"])
    assert get(serving.port, "generate/2")["steps"] == 2


def test_a_container_without_python_is_told(kubelet: Kubelet, serving: Serving) -> None:
    place = kubelet.show(serving.container)

    with pytest.raises(QuiesceFailed) as caught:
        kubelet.take(place, QuiesceOptions(python="/no/python"))

    assert "/no/python" in str(caught.value.details)
    assert "--python" in str(caught.value.remedy)
    assert get(serving.port)["pauses"] == 0


def test_an_engine_whose_cria_dies_goes_on_by_itself(kubelet: Kubelet, serving: Serving) -> None:
    """Killed while the node dumps: nobody is left to resume it but its lease."""
    place = kubelet.show(serving.container)
    kubelet.standin.checkpoint = lambda *_: str(time.sleep(60))
    words = ["--kubeconfig", kubelet.kubeconfig, "--python", sys.executable, "--lease", "2"]
    command = [sys.executable, "-m", "cria", "kubernetes", "checkpoint", place, *words]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as cria:
        wait_for(lambda: get(serving.port)["paused"])
        cria.kill()

    wait_for(lambda: not get(serving.port)["paused"])
    assert get(serving.port)["resumes"] == 1


def started(kubelet: Kubelet, place: str, *more: str) -> subprocess.Popen[str]:
    words = ["--kubeconfig", str(kubelet.kubeconfig), "--python", sys.executable, *more]
    command = [sys.executable, "-m", "cria", "kubernetes", "checkpoint", place, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_one_that_is_told_to_end_waits_for_the_node(kubelet: Kubelet, serving: Serving) -> None:
    """As a pod of a Job that is deleted: broken off, the container could be left frozen."""
    place = kubelet.show(serving.container)
    begun, go = threading.Event(), threading.Event()

    def checkpoint_later(name: str, container: str, seconds: int) -> str:
        begun.set()
        go.wait(20)
        return kubelet._checkpoint(name, container, seconds)

    kubelet.standin.checkpoint = checkpoint_later
    with started(kubelet, place) as cria:
        assert begun.wait(20)
        cria.terminate()
        go.set()
        out, said = cria.communicate(timeout=30)

    assert cria.returncode == 0
    assert Path(out.strip()).is_file()
    assert "is waited for" in said
    assert not get(serving.port)["paused"]


def test_one_that_is_told_twice_lets_the_engine_go_on_and_ends(
    kubelet: Kubelet, serving: Serving
) -> None:
    place = kubelet.show(serving.container)
    begun, go = threading.Event(), threading.Event()
    kubelet.standin.checkpoint = lambda *_: str(begun.set() or go.wait(20))
    with started(kubelet, place) as cria:
        assert begun.wait(20)
        cria.terminate()
        assert cria.stderr is not None
        wait_for(lambda: "is waited for" in str(cria.stderr and cria.stderr.readline()))
        cria.terminate()
        assert cria.wait(timeout=20) == 130
    go.set()

    assert (get(serving.port)["resumes"], get(serving.port)["paused"]) == (1, False)


def test_the_command_prints_the_archive_s_path(kubelet: Kubelet, serving: Serving) -> None:
    place = kubelet.show(serving.container)
    words = ["--kubeconfig", kubelet.kubeconfig, "--python", sys.executable]
    command = [sys.executable, "-m", "cria", "kubernetes", "checkpoint", place, *words]

    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)

    assert Path(plain.stdout.strip()).is_file()
    assert "let its engine go on" in plain.stderr
    (outcome,) = json.loads(as_json.stdout)["outcomes"]
    assert outcome["place"] == place
    assert outcome["done"]["manifest"]["checked"]["runtime"] == "containerd"
