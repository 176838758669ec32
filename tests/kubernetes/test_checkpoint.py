"""cria kubernetes checkpoint with a real containerd: only the API server and the kubelet are fakes."""

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
from tests.kubernetes.conftest import REPOSITORY, Container, Sandbox, host_mounts
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
WITH_OUR_PYTHON = QuiesceOptions(python=sys.executable)


class FakeKubelet:
    """A fake API server and kubelet; a real container runtime takes the checkpoints and runs the commands."""

    def __init__(self, api: FakeApiServer, kubeconfig: Path, ca: Path, cri: Cri) -> None:
        self.api, self.kubeconfig, self.ca, self.cri = api, kubeconfig, ca, cri
        self.directory = kubeconfig.parent / "checkpoints"
        self.directory.mkdir(mode=0o700)
        self.ids: dict[str, str] = {}
        api.checkpoint = self._checkpoint
        api.run = self._run

    def add(self, container: Container) -> str:
        """Add a pod with a container. Returns how cria names the container."""
        name = container.sandbox.config["metadata"]["name"]
        description = pod(name, container.name, container_id=f"containerd://{container.id}")
        self.api.add(description)
        self.ids[name] = container.id
        return f"default/{name}/{container.name}"

    def cluster(self) -> Cluster:
        kubelets = KubeletAccess(url=self.api.url, ca=self.ca)
        return Cluster(kubeconfig=self.kubeconfig, kubelets=kubelets)

    def checkpoint(
        self, ref: str, quiesce: QuiesceOptions = WITH_OUR_PYTHON, **options: Any
    ) -> Any:
        try:
            return checkpoint(
                ref, cluster=self.cluster(), options=CheckpointOptions(quiesce=quiesce, **options)
            )
        except CriaError as error:
            error.add_note(str(error.details))
            raise

    def _checkpoint(self, name: str, container: str, seconds: float) -> str:
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        archive = self.directory / f"checkpoint-{name}_default-{container}-{timestamp}.tar"
        try:
            self.cri.CheckpointContainer(
                seconds=seconds,
                timeout=int(seconds),
                container_id=self.ids[name],
                location=str(archive),
            )
        except grpc.RpcError as error:
            raise HttpError(
                500, f"checkpointing of default/{name} failed ({grpc_message(error)})"
            ) from error
        return str(archive)

    def _run(self, name: str, container: str, command: Any) -> ExecResult:
        try:
            result = self.cri.ExecSync(container_id=self.ids[name], cmd=command, timeout=60)
        except grpc.RpcError as error:
            raise HttpError(500, f"Internal error occurred: {grpc_message(error)}") from error
        return result.exit_code, result.stdout.decode(), result.stderr.decode()


def grpc_message(error: Any) -> str:
    """Return an error of gRPC as the kubelet writes it; either side may be the first whose deadline passes."""
    if error.code() is grpc.StatusCode.CANCELLED:
        return f"rpc error: code = DeadlineExceeded desc = {STREAM_CANCELLED}"
    code = "".join(word.title() for word in error.code().name.split("_"))
    return f"rpc error: code = {code} desc = {error.details()}"


@pytest.fixture
def kubelet(tmp_path: Path, cri: Cri) -> Iterator[FakeKubelet]:
    with serve_api(tmp_path) as (api, kubeconfig, ca):
        yield FakeKubelet(api, kubeconfig, ca, cri)


@pytest.fixture
def annotations(tmp_path: Path) -> dict[str, str]:
    """Let CRIU keep connections and run no action script, so that only cria quiesces the engine."""
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
    running = run_container(
        sandbox,
        base_image,
        command=command,
        mounts=host_mounts(),
        envs=[
            {"key": "PYTHONPATH", "value": str(REPOSITORY).encode()}
        ],  # the cria of this checkout
        annotations=annotations,
    )
    running.wait_for_output("ready")
    return Serving(container=running, port=port)


@pytest.mark.parametrize("by", ["exec", "node"])
def test_a_container_is_quiesced_and_checkpointed_while_it_serves(
    kubelet: FakeKubelet, serving: Serving, by: Any
) -> None:
    ref = kubelet.add(serving.container)
    request = Request(serving.port, steps=60)

    result = kubelet.checkpoint(ref, QuiesceOptions(by=by, python=sys.executable))

    request.join(timeout=60)
    assert request.answer == {"steps": 60, "pauses": 1}
    after = get(serving.port)
    assert (after["pauses"], after["quiesced"], after["resumes"]) == (1, 1, 1)
    manifest = result.manifest
    record = manifest.quiesce
    assert (record.by, len(record.engines), record.resumed) == (by, 1, True)
    assert record.lease_seconds == 60
    archive = Path(manifest.archive)
    assert manifest.checked.bytes == archive.stat().st_size
    assert (manifest.checked.runtime, manifest.checked.oci_runtime) == (
        "containerd",
        "io.containerd.runc.v2",
    )
    assert result.manifest_path == f"{archive}.cria.json"
    assert archive.stat().st_mode & 0o077 == 0


def test_a_restored_engine_resumes_when_its_lease_ends(
    kubelet: FakeKubelet, serving: Serving, restore: Callable[..., Container], cri: Cri
) -> None:
    result = kubelet.checkpoint(
        kubelet.add(serving.container), QuiesceOptions(lease_seconds=2, python=sys.executable)
    )
    cri.StopContainer(container_id=serving.container.id)

    restore(Path(result.manifest.archive), serving.container)

    assert get(serving.port)["pauses"] == 1
    wait_for(lambda: not get(serving.port)["paused"])  # its lease is over
    assert get(serving.port, "generate/2") == {"steps": 2, "pauses": 0}


def test_an_engine_that_cria_run_has_started_is_checkpointed_and_restored(
    kubelet: FakeKubelet, run_by_cria: Serving, restore: Callable[..., Container], cri: Cri
) -> None:
    request = Request(run_by_cria.port, steps=60)

    result = kubelet.checkpoint(kubelet.add(run_by_cria.container))
    request.join(timeout=60)
    cri.StopContainer(container_id=run_by_cria.container.id)
    restore(Path(result.manifest.archive), run_by_cria.container)

    assert request.answer == {"steps": 60, "pauses": 1}
    assert len(result.manifest.quiesce.engines) == 1
    assert get(run_by_cria.port)["pauses"] == 1


def test_cria_and_the_node_s_hook_together_resume_the_engine_once(
    kubelet: FakeKubelet, serve: Callable[..., Serving], conf: Path
) -> None:
    serving = serve(annotations={"org.criu.config": str(conf)})

    ref = kubelet.add(serving.container)
    result = kubelet.checkpoint(ref)
    by_hook = kubelet.checkpoint(ref, QuiesceOptions(by="hook"))

    assert "engine(s) quiesced" in dump_log(Path(result.manifest.archive))
    assert result.manifest.quiesce.resumed is False, "the hook had resumed it before"
    assert not get(serving.port)["paused"]
    assert by_hook.manifest.quiesce.by == "hook"
    assert "engine(s) quiesced" in dump_log(Path(by_hook.manifest.archive))


def test_a_dump_that_criu_refuses_is_one_clear_error_and_the_engine_resumes(
    kubelet: FakeKubelet, serve: Callable[..., Serving]
) -> None:
    serving = serve()
    ref = kubelet.add(serving.container)
    client = socket.create_connection(("127.0.0.1", serving.port))

    with client, pytest.raises(DumpFailed) as caught:
        kubelet.checkpoint(ref)

    assert "criu failed" in str(caught.value.details)
    assert str(caught.value.log).endswith(".log")
    after = get(serving.port)
    assert (after["pauses"], after["resumes"], after["paused"]) == (1, 1, False)
    assert not list(kubelet.directory.iterdir())


def test_on_a_node_without_criu_the_error_says_how_to_get_it(
    kubelet: FakeKubelet,
    serving: Serving,
    start_containerd: Callable[..., Containerd],
    tmp_path: Path,
) -> None:
    ref = kubelet.add(serving.container)
    with_criu = kubelet.cri
    without_criu = Cri(start_containerd(criu=tmp_path).socket)

    def checkpoint_without_criu(*arguments: Any) -> str:
        kubelet.cri = without_criu
        try:
            return kubelet._checkpoint(*arguments)
        finally:
            kubelet.cri = with_criu

    kubelet.api.checkpoint = checkpoint_without_criu

    with pytest.raises(DumpFailed) as caught:
        kubelet.checkpoint(ref)

    assert "CRIU" in str(caught.value.details)
    assert "cria kubernetes node install" in str(caught.value.remedy)
    assert (get(serving.port)["pauses"], get(serving.port)["paused"]) == (1, False)


@pytest.mark.parametrize("on_its_node", [True, False])
def test_a_container_that_a_cancelled_checkpoint_left_frozen_is_thawed(
    on_its_node: bool,
    kubelet: FakeKubelet,
    serving: Serving,
    containerd: Containerd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """containerd 2.1.9 leaves it frozen: on its node cria thaws it, elsewhere the error has the command."""
    ref = kubelet.add(serving.container)
    kubelet.api.checkpoint = lambda *arguments: kubelet._checkpoint(*arguments[:2], 0.05)
    if not on_its_node:
        monkeypatch.setattr("cria.kubernetes.kubelet.checkpoint.thaw", lambda _container: False)

    with pytest.raises(CheckpointTimedOut) as caught:
        kubelet.checkpoint(ref, QuiesceOptions(lease_seconds=1, python=sys.executable))

    if not on_its_node:
        file, _, _ = find_freezer(serving.container.pid)
        wait_for(lambda: is_frozen(str(file)), seconds=5)
        command = str(caught.value.remedy).split(": ", 1)[1].split(";")[0].split()
        ctr = (PREFIX / "bin" / "ctr", "--address", containerd.socket)
        result = containerd.in_its_namespaces(*ctr, *command[1:])
        assert result.returncode == 0, result.stderr
    wait_for(lambda: not get(serving.port)["paused"])
    assert get(serving.port, "generate/2")["steps"] == 2


def test_a_container_without_python_is_one_clear_error(
    kubelet: FakeKubelet, serving: Serving
) -> None:
    ref = kubelet.add(serving.container)

    with pytest.raises(QuiesceFailed) as caught:
        kubelet.checkpoint(ref, QuiesceOptions(python="/no/python"))

    assert "/no/python" in str(caught.value.details)
    assert "--python" in str(caught.value.remedy)
    assert get(serving.port)["pauses"] == 0


def test_an_engine_whose_cria_is_killed_resumes_by_itself(
    kubelet: FakeKubelet, serving: Serving
) -> None:
    ref = kubelet.add(serving.container)
    kubelet.api.checkpoint = lambda *_: str(time.sleep(60))
    with start_cria(kubelet, ref, "--lease", "2") as cria:
        wait_for(lambda: get(serving.port)["paused"])
        cria.kill()

    wait_for(lambda: not get(serving.port)["paused"])
    assert get(serving.port)["resumes"] == 1


def checkpoint_command(kubelet: FakeKubelet, ref: str, *options: str) -> list[str]:
    command = [sys.executable, "-m", "cria", "kubernetes", "checkpoint", ref, *options]
    return [*command, "--kubeconfig", str(kubelet.kubeconfig), "--python", sys.executable]


def start_cria(kubelet: FakeKubelet, ref: str, *options: str) -> subprocess.Popen[str]:
    command = checkpoint_command(kubelet, ref, *options)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_at_sigterm_cria_waits_for_the_node(kubelet: FakeKubelet, serving: Serving) -> None:
    """A pod of a Job that is deleted gets SIGTERM: cancelled, the request could leave the container frozen."""
    ref = kubelet.add(serving.container)
    begun, go = threading.Event(), threading.Event()

    def checkpoint_later(name: str, container: str, seconds: int) -> str:
        begun.set()
        go.wait(20)
        return kubelet._checkpoint(name, container, seconds)

    kubelet.api.checkpoint = checkpoint_later
    with start_cria(kubelet, ref) as cria:
        assert begun.wait(20)
        cria.terminate()
        go.set()
        out, err = cria.communicate(timeout=30)

    assert cria.returncode == 0
    assert Path(out.strip()).is_file()
    assert "waiting for a node's dump" in err
    assert not get(serving.port)["paused"]


def test_at_a_second_sigterm_cria_resumes_the_engine_and_ends(
    kubelet: FakeKubelet, serving: Serving
) -> None:
    ref = kubelet.add(serving.container)
    begun, go = threading.Event(), threading.Event()
    kubelet.api.checkpoint = lambda *_: str(begun.set() or go.wait(20))
    with start_cria(kubelet, ref) as cria:
        assert begun.wait(20)
        cria.terminate()
        assert cria.stderr is not None
        wait_for(lambda: "waiting for a node's dump" in str(cria.stderr and cria.stderr.readline()))
        cria.terminate()
        assert cria.wait(timeout=20) == 130
    go.set()

    assert (get(serving.port)["resumes"], get(serving.port)["paused"]) == (1, False)


def test_the_command_prints_the_archive_s_path(kubelet: FakeKubelet, serving: Serving) -> None:
    ref = kubelet.add(serving.container)
    command = checkpoint_command(kubelet, ref)

    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)

    assert Path(plain.stdout.strip()).is_file()
    assert "resume engine" in plain.stderr
    (outcome,) = json.loads(as_json.stdout)["outcomes"]
    assert outcome["place"] == ref
    assert outcome["done"]["manifest"]["checked"]["runtime"] == "containerd"
