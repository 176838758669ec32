"""A container is checkpointed by its node while its engine is quiesced, and the engine resumes whatever happens."""

from __future__ import annotations

import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from fake_cluster import FakeCluster

from cria.errors import (
    AmbiguousTarget,
    CheckpointApiMissing,
    CheckpointDamaged,
    CheckpointTimedOut,
    ClusterForbids,
    ClusterUnreachable,
    CriaError,
    DumpFailed,
    KubernetesMissing,
    NoSuchPod,
    NotACheckpoint,
    NotWritable,
    PodNotRunning,
    QuiesceFailed,
    UsageError,
)
from cria.events import Event, Warned
from cria.kubernetes.kubelet import cluster, manifests, quiesce
from cria.kubernetes.kubelet.checkpoint import checkpoint
from cria.kubernetes.kubelet.cluster import Cluster, KubeletAccess
from cria.kubernetes.kubelet.pods import ContainerRef
from cria.kubernetes.kubelet.quiesce import QuiesceOptions
from tests.kubernetes.fake_api_server import (
    STREAM_CANCELLED,
    HttpError,
    api_error,
    kubeconfig,
    serve_api,
)

IN_THE_ARCHIVE = "0123456789ab"
EVERY_COMMAND = ["pause", "quiesce", "renew", "resume"]


def test_the_engine_is_quiesced_while_its_node_dumps_it_and_resumes(
    fake_cluster: FakeCluster,
) -> None:
    agent = fake_cluster.add("p")

    result = fake_cluster.checkpoint(quiesce=QuiesceOptions(inflight="drain", lease_seconds=90))

    assert fake_cluster.paused_at_dump == {"p": True}
    assert not agent.paused
    assert agent.commands == EVERY_COMMAND
    assert agent.calls[0][1] == {"inflight": "drain"}
    assert agent.calls[2][1] == {"lease": 90}
    record = result.manifest.quiesce
    assert (record.by, record.inflight, record.lease_seconds, record.resumed) == (
        "exec", "drain", 90, True
    )  # fmt: skip
    assert record.engines == (quiesce.QuiescedEngine(workers=2, groups=6, dropped_bytes=4096),)
    assert fake_cluster.posts == ["POST api/v1/nodes/node-1/proxy/checkpoint/default/p/engine"]


def test_a_kubelet_can_be_asked_directly(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("p")

    result = fake_cluster.checkpoint(cluster=fake_cluster.connect_kubelets(ca=fake_cluster.ca))

    assert fake_cluster.posts == ["POST checkpoint/default/p/engine"]
    assert result.manifest.server == "kubelet"


def test_the_node_is_given_the_timeout(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("p")
    timeouts: list[int] = []
    fake_cluster.api.checkpoint = lambda _pod, _container, seconds: str(
        timeouts.append(seconds) or "/a"
    )

    fake_cluster.checkpoint(timeout_seconds=1234)

    assert timeouts == [1234]


# The archive -----------------------------------------------------------------------------------


def test_an_archive_that_can_be_read_is_verified_and_has_its_manifest_beside_it(
    fake_cluster: FakeCluster, archive: Path
) -> None:
    fake_cluster.add("p", container_id=f"containerd://{IN_THE_ARCHIVE}")
    fake_cluster.archive = str(archive)

    result = fake_cluster.checkpoint()

    checked = result.manifest.checked
    assert (checked.path, checked.bytes) == (str(archive), archive.stat().st_size)
    assert checked.runtime == "containerd"
    beside = Path(f"{archive}.cria.json")
    assert result.manifest_path == str(beside)
    assert beside.stat().st_mode & 0o777 == 0o600
    written = manifests.read(beside)
    assert written is not None
    assert (written.container, written.checked) == (result.manifest.container, checked)


def test_the_node_s_archives_can_be_mounted_at_another_path(
    fake_cluster: FakeCluster, archive: Path
) -> None:
    fake_cluster.add("p", container_id=f"containerd://{IN_THE_ARCHIVE}")
    fake_cluster.archive = f"/var/lib/kubelet/checkpoints/{archive.name}"

    result = fake_cluster.checkpoint(archives=archive.parent)

    assert result.manifest.archive == fake_cluster.archive
    assert result.manifest.checked.path == str(archive)


def test_an_archive_on_another_node_is_not_verified_and_that_is_said(
    fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    fake_cluster.add("p")
    events: list[Event] = []

    result = checkpoint("default/p", cluster=fake_cluster.connect(), listener=events.append)
    kept = fake_cluster.checkpoint(manifests=tmp_path)

    assert result.manifest.checked is None
    assert "on node node-1" in str(result.manifest.not_checked)
    assert result.manifest_path is None
    assert any(isinstance(e, Warned) and "was not verified" in e.message for e in events)
    assert Path(kept.manifest_path).parent == tmp_path


def cut_off(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-20000])


def leading_out(archive: Path) -> None:
    with tarfile.open(archive, "a") as tar:
        tar.addfile(tarfile.TarInfo("../../etc/passwd"))


def of_something_else(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("oci-layout"))


@pytest.mark.parametrize(
    ("harm", "kind", "why"),
    [
        (cut_off, CheckpointDamaged, ""),
        (leading_out, CheckpointDamaged, "leads out of it"),
        (of_something_else, NotACheckpoint, "container image"),
    ],
)
def test_a_bad_archive_is_one_clear_error_and_the_engine_has_resumed(
    fake_cluster: FakeCluster, archive: Path, harm: Any, kind: type[CriaError], why: str
) -> None:
    agent = fake_cluster.add("p", container_id=f"containerd://{IN_THE_ARCHIVE}")
    fake_cluster.archive = str(archive)
    harm(archive)

    with pytest.raises(kind) as caught:
        fake_cluster.checkpoint()

    assert why in str(caught.value.details)
    assert agent.commands == EVERY_COMMAND
    assert not Path(f"{archive}.cria.json").exists()


def test_the_archive_of_another_container_is_refused(
    fake_cluster: FakeCluster, archive: Path
) -> None:
    fake_cluster.add("p", container_id="containerd://ba9876543210")
    fake_cluster.archive = str(archive)

    with pytest.raises(CheckpointDamaged, match="of another container") as caught:
        fake_cluster.checkpoint()

    assert IN_THE_ARCHIVE in str(caught.value.details)


@pytest.mark.parametrize("path", ["/a/../../etc/shadow", "c.tar", "/a\0b"])
def test_a_path_that_could_lead_anywhere_is_refused(fake_cluster: FakeCluster, path: str) -> None:
    agent = fake_cluster.add("p")
    fake_cluster.archive = path

    with pytest.raises(CheckpointDamaged, match="could lead anywhere"):
        fake_cluster.checkpoint()

    assert agent.commands == EVERY_COMMAND


def test_a_manifest_that_cannot_be_written_is_one_clear_error(
    fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    agent = fake_cluster.add("p")

    with pytest.raises(NotWritable, match="manifest"):
        fake_cluster.checkpoint(manifests=tmp_path / "nowhere")

    assert agent.commands == EVERY_COMMAND


# The node's response ---------------------------------------------------------------------------

RUNC = (
    "checkpointing of default/p/engine failed (rpc error: code = Unknown desc = failed to checkpoint:"
    " runc did not terminate: criu failed: type NOTIFY errno 0 log file: /run/x/criu-dump.log)"
)
GATE_OFF = "rpc error: code = Unimplemented desc = unknown method CheckpointContainer for service RuntimeService"
FORBIDDEN = (
    "Forbidden (user=kube-apiserver, verb=create, resource=nodes, subresource=checkpoint(proxy))"
)


@pytest.mark.parametrize(
    ("error", "kind", "why", "remedy"),
    [
        (api_error(401, "Unauthorized"), ClusterForbids, "Unauthorized", "--kubeconfig"),
        (api_error(403, "no"), ClusterForbids, "create nodes/proxy", "rbac"),
        (HttpError(403, FORBIDDEN), ClusterForbids, "API server's own user", "rbac"),
        (
            HttpError(404, "404 page not found"),
            CheckpointApiMissing,
            "ContainerCheckpoint",
            "feature",
        ),
        (HttpError(404, "container x does not exist"), NoSuchPod, "does not exist", "get pods"),
        (HttpError(500, RUNC), DumpFailed, "criu failed", "CRIU's log"),
        (HttpError(500, "CRIU binary not found or too old"), DumpFailed, "CRIU", "node install"),
        (HttpError(500, GATE_OFF), CheckpointApiMissing, "runtime cannot", "node install"),
        (HttpError(500, "context deadline exceeded"), CheckpointTimedOut, "deadline", "--timeout"),
        (
            HttpError(500, f"Canceled desc = {STREAM_CANCELLED}"),
            CheckpointTimedOut,
            "RST",
            "--timeout",
        ),
        (
            api_error(503, "error trying to reach service"),
            ClusterUnreachable,
            "reach",
            "describe node",
        ),
        (HttpError(502, ""), ClusterUnreachable, "502", "describe node"),
        (
            api_error(503, "error trying to reach service: unexpected EOF"),
            CheckpointTimedOut,
            "EOF",
            "task resume",
        ),
        (HttpError(200, "{}"), CheckpointApiMissing, "{}", "kubelet"),
    ],
)
def test_each_response_of_a_node_has_an_error_with_a_remedy_and_the_engine_resumes(
    fake_cluster: FakeCluster, error: HttpError, kind: type[CriaError], why: str, remedy: str
) -> None:
    agent = fake_cluster.add("p")
    fake_cluster.api.errors["checkpoint"] = error

    with pytest.raises(kind) as caught:
        fake_cluster.checkpoint()

    assert why in str(caught.value.details)
    assert remedy in str(caught.value.remedy)
    assert agent.commands == EVERY_COMMAND
    assert not agent.paused


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx2.RemoteProtocolError("server disconnected"), CheckpointTimedOut),
        (httpx2.ReadError("connection reset"), CheckpointTimedOut),
        (httpx2.ConnectError("connection refused"), ClusterUnreachable),
    ],
)
def test_a_connection_that_is_lost_after_the_request_may_leave_the_container_frozen(
    fake_cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[CriaError],
) -> None:
    agent = fake_cluster.add("p")

    def post(*_arguments: Any, **_options: Any) -> Any:
        raise error

    monkeypatch.setattr(fake_cluster.connect()._http, "post", post)
    with pytest.raises(CriaError) as caught:
        fake_cluster.checkpoint()

    assert type(caught.value) is kind
    assert ("task resume" in str(caught.value.remedy)) is (kind is CheckpointTimedOut)
    assert agent.commands == EVERY_COMMAND


@pytest.mark.parametrize("message", [RUNC, RUNC.replace("log file:", "path=")])
def test_criu_s_log_is_named(fake_cluster: FakeCluster, message: str) -> None:
    fake_cluster.add("p")
    fake_cluster.api.errors["checkpoint"] = HttpError(500, message)

    with pytest.raises(DumpFailed) as caught:
        fake_cluster.checkpoint()

    assert caught.value.log == "/run/x/criu-dump.log"


def test_a_node_that_does_not_answer_in_time_is_not_waited_for(
    fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = fake_cluster.add("p")
    monkeypatch.setattr(cluster, "GRACE_SECONDS", -0.7)
    fake_cluster.api.checkpoint = lambda *_: str(time.sleep(1))

    with pytest.raises(CheckpointTimedOut, match="node-1") as caught:
        fake_cluster.checkpoint(timeout_seconds=1)

    assert "leaves the container frozen" in str(caught.value.details)
    assert "ctr --namespace k8s.io task resume p-engine" in str(caught.value.remedy)
    assert agent.commands == EVERY_COMMAND


def test_an_interrupted_checkpoint_resumes_the_engine(
    fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = fake_cluster.add("p")

    def interrupt(*_arguments: object, **_options: object) -> str:
        assert agent.paused
        raise KeyboardInterrupt

    monkeypatch.setattr(Cluster, "checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fake_cluster.checkpoint()

    assert agent.commands == EVERY_COMMAND


# Connections and credentials -------------------------------------------------------------------


def test_a_certificate_of_another_ca_is_refused(fake_cluster: FakeCluster, tmp_path: Path) -> None:
    other_ca = tmp_path / "other-ca.pem"
    trustme.CA().cert_pem.write_to_path(str(other_ca))
    agent = fake_cluster.add("p")
    wrong = kubeconfig(tmp_path / "wrong", fake_cluster.api.url, other_ca)

    with pytest.raises(ClusterUnreachable, match="API server") as at_the_server:
        fake_cluster.checkpoint(cluster=Cluster(kubeconfig=wrong))
    with pytest.raises(ClusterUnreachable, match="kubelet of node node-1") as at_the_kubelet:
        fake_cluster.checkpoint(cluster=fake_cluster.connect_kubelets(ca=other_ca))

    assert "CERTIFICATE_VERIFY_FAILED" in str(at_the_server.value.details)
    assert "--kubelet-ca" in str(at_the_kubelet.value.remedy)
    assert agent.commands == EVERY_COMMAND, "only the second found the pod"


def test_a_kubeconfig_without_certificate_checks_is_warned_of_and_refused_for_kubelets(
    fake_cluster: FakeCluster,
) -> None:
    text = fake_cluster.kubeconfig.read_text().replace(
        f"certificate-authority: {fake_cluster.ca}", "insecure-skip-tls-verify: true"
    )
    fake_cluster.kubeconfig.write_text(text)
    events: list[Event] = []

    with pytest.raises(UsageError, match="certificates of kubelets cannot be checked"):
        fake_cluster.connect(kubelets=KubeletAccess(), listener=events.append)

    assert [event.message for event in events if isinstance(event, Warned)] == [
        f"{fake_cluster.kubeconfig} turns off the check of the API server's certificate"
    ]


def test_a_cluster_that_does_not_answer_is_one_clear_error(
    fake_cluster: FakeCluster, tmp_path: Path
) -> None:
    with serve_api(tmp_path) as (_, gone, _ca):
        pass

    with pytest.raises(ClusterUnreachable, match="API server"):
        fake_cluster.checkpoint(cluster=Cluster(kubeconfig=gone))


def test_a_wrong_token_is_one_clear_error(fake_cluster: FakeCluster, tmp_path: Path) -> None:
    wrong = kubeconfig(tmp_path / "wrong", fake_cluster.api.url, fake_cluster.ca, token="x")
    agent = fake_cluster.add("p")
    fake_cluster.api.errors["proxy"] = HttpError(200, "unreached")

    with pytest.raises(ClusterForbids, match="does not accept the credentials"):
        fake_cluster.checkpoint(cluster=Cluster(kubeconfig=wrong))

    assert agent.commands == []


@pytest.mark.parametrize("text", ["", "clusters: []", "{", "contexts: [1]"])
def test_a_file_that_is_no_kubeconfig_is_one_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)

    with pytest.raises(KubernetesMissing, match="credentials"):
        Cluster(kubeconfig=path)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightkube", None)

    with pytest.raises(KubernetesMissing) as caught:
        Cluster()

    assert caught.value.remedy == "from cria's checkout: pip install '.[kubernetes]'"


# The container ---------------------------------------------------------------------------------

WAITING = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m"}}
ENDED = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


@pytest.mark.parametrize(
    ("changes", "ref", "kind", "why"),
    [
        ({}, "default/gone", NoSuchPod, "not found"),
        ({}, "default/p/other", NoSuchPod, "it has engine"),
        ({"state": WAITING}, "default/p", PodNotRunning, "CrashLoopBackOff: back-off 5m"),
        ({"state": ENDED}, "default/p", PodNotRunning, "status 137: OOMKilled"),
        ({"node": "", "phase": "Pending"}, "default/p", PodNotRunning, "not scheduled"),
        ({"metadata": {"deletionTimestamp": "x"}}, "default/p", PodNotRunning, "deleted"),
    ],
)
def test_a_container_that_cannot_be_checkpointed_is_not_touched(
    fake_cluster: FakeCluster, changes: dict[str, Any], ref: str, kind: type[CriaError], why: str
) -> None:
    agent = fake_cluster.add("p", **changes)

    with pytest.raises(kind) as caught:
        fake_cluster.checkpoint(ref)

    assert why in str(caught.value.details)
    assert agent.commands == fake_cluster.posts == []


def test_of_several_containers_one_must_be_named(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("p", "engine", "proxy")

    with pytest.raises(AmbiguousTarget) as caught:
        fake_cluster.checkpoint("default/p")
    result = fake_cluster.checkpoint("default/p/proxy")

    assert "default/p/engine" in str(caught.value.remedy)
    assert result.manifest.container.container == "proxy"


@pytest.mark.parametrize(
    "text", ["p", "a/b/c/d", "default/", "default/../x", "Default/p", "a/b?/c"]
)
def test_a_text_that_names_no_container_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="does not name a container"):
        ContainerRef.parse(text)


# Quiescing -------------------------------------------------------------------------------------


def test_an_engine_that_cannot_be_quiesced_is_not_checkpointed(fake_cluster: FakeCluster) -> None:
    agent = fake_cluster.add("p")
    agent.fail = "quiesce"

    with pytest.raises(QuiesceFailed) as caught:
        fake_cluster.checkpoint()

    assert "rank 1 did not come" in str(caught.value.details)
    assert fake_cluster.posts == []
    assert not agent.paused


def test_an_engine_whose_agent_has_no_leases_is_checkpointed(fake_cluster: FakeCluster) -> None:
    agent = fake_cluster.add("p")
    agent.errors["renew"] = "no such command: renew; there are pause"

    result = fake_cluster.checkpoint()

    assert result.manifest.quiesce.lease_seconds is None
    assert fake_cluster.paused_at_dump == {"p": True}


def test_a_container_without_an_agent_is_checkpointed_as_it_is(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("p")
    fake_cluster.api.run = lambda *_: (0, '{"engines": []}', "")
    events: list[Event] = []

    result = checkpoint("default/p", cluster=fake_cluster.connect(), listener=events.append)

    assert result.manifest.quiesce.by == "none"
    assert "no engine of this container has" in str(result.manifest.quiesce.why_not)
    assert any(isinstance(event, Warned) for event in events)


@pytest.mark.parametrize("by", ["hook", "none"])
def test_without_exec_nothing_is_run_in_the_container(fake_cluster: FakeCluster, by: Any) -> None:
    agent = fake_cluster.add("p")

    result = fake_cluster.checkpoint(quiesce=QuiesceOptions(by=by))

    assert agent.commands == []
    assert result.manifest.quiesce.by == by
    assert result.manifest.quiesce.resumed is None


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ((127, "", "python3: not found"), "python3: not found"),
        ((0, "hello", ""), "hello"),
    ],
)
def test_a_container_in_which_nothing_can_be_run_is_not_checkpointed(
    fake_cluster: FakeCluster, result: Any, why: str
) -> None:
    fake_cluster.add("p")
    fake_cluster.api.run = lambda *_: result

    with pytest.raises(QuiesceFailed) as caught:
        fake_cluster.checkpoint()

    assert why in str(caught.value.details)
    assert fake_cluster.posts == []


@pytest.mark.parametrize(
    ("error", "kind", "why"),
    [
        (api_error(403, "no"), ClusterForbids, "create and get pods/exec"),
        (api_error(404, "no"), NoSuchPod, "does not exist any more"),
        (api_error(400, "no"), PodNotRunning, "answered 400 to exec"),
    ],
)
def test_an_exec_that_is_refused_is_one_clear_error(
    fake_cluster: FakeCluster, error: HttpError, kind: type[CriaError], why: str
) -> None:
    fake_cluster.add("p")
    fake_cluster.api.errors["exec"] = error

    with pytest.raises(kind) as caught:
        fake_cluster.checkpoint()

    assert why in f"{caught.value} {caught.value.details}"
    assert fake_cluster.posts == []


def test_an_engine_that_cannot_be_told_to_resume_is_warned_of(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("p")
    events: list[Event] = []

    def checkpoint_then_break(*_arguments: object) -> str:
        fake_cluster.api.errors["exec"] = api_error(500, "no")
        return "/a.tar"

    fake_cluster.api.checkpoint = checkpoint_then_break
    result = checkpoint("default/p", cluster=fake_cluster.connect(), listener=events.append)

    assert result.manifest.quiesce.resumed is None
    assert any(isinstance(e, Warned) and "could not tell the engine" in e.message for e in events)
