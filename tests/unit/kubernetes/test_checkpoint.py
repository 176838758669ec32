"""Have a container checkpointed by its node: the engine stands still meanwhile and goes on whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import trustme
from straw import Straw

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
    NoSuchProcess,
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
from cria.kubernetes.kubelet.pods import parse
from cria.kubernetes.kubelet.quiesce import QuiesceOptions
from cria.kubernetes.node.criu_action import Failed
from tests.kubernetes.standin import BROKEN_OFF, Refused, kubeconfig, standing_in, status

IN_THE_ARCHIVE = "0123456789ab"
DONE = ["pause", "quiesce", "renew", "resume"]


def test_the_engine_stands_still_while_its_node_dumps_it_and_goes_on_after(straw: Straw) -> None:
    engine = straw.add("p")

    done = straw.take(quiesce=QuiesceOptions(inflight="drain", lease_seconds=90))

    assert straw.paused_then == {"p": True}
    assert not engine.paused
    assert engine.commands == DONE
    assert engine.told[0][1] == {"inflight": "drain"}
    assert engine.told[2][1] == {"lease": 90}
    said = done.manifest.still
    assert (said.by, said.inflight, said.lease_seconds, said.resumed) == ("exec", "drain", 90, True)
    assert said.engines == (quiesce.QuiescedEngine(workers=2, groups=6, dropped_bytes=4096),)
    assert straw.posts == ["POST api/v1/nodes/node-1/proxy/checkpoint/default/p/engine"]


def test_a_kubelet_can_be_asked_directly(straw: Straw) -> None:
    straw.add("p")

    done = straw.take(cluster=straw.kubelets(ca=straw.ca))

    assert straw.posts == ["POST checkpoint/default/p/engine"]
    assert done.manifest.via == "kubelet"


def test_the_time_for_it_is_given_to_the_node(straw: Straw) -> None:
    straw.add("p")
    given: list[int] = []
    straw.standin.checkpoint = lambda _pod, _container, seconds: str(given.append(seconds) or "/a")

    straw.take(timeout_seconds=1234)

    assert given == [1234]


# What the archive is ---------------------------------------------------------------------------


def test_an_archive_that_can_be_read_is_checked_and_has_its_manifest_beside_it(
    straw: Straw, archive: Path
) -> None:
    straw.add("p", container_id=f"containerd://{IN_THE_ARCHIVE}")
    straw.archive = str(archive)

    done = straw.take()

    checked = done.manifest.checked
    assert (checked.path, checked.bytes) == (str(archive), archive.stat().st_size)
    assert checked.runtime == "containerd"
    beside = Path(f"{archive}.cria.json")
    assert done.manifest_path == str(beside)
    assert beside.stat().st_mode & 0o777 == 0o600
    written = manifests.read(beside)
    assert written is not None
    assert (written.container, written.checked) == (done.manifest.container, checked)


def test_the_node_s_archives_can_be_seen_at_another_path(straw: Straw, archive: Path) -> None:
    straw.add("p", container_id=f"containerd://{IN_THE_ARCHIVE}")
    straw.archive = f"/var/lib/kubelet/checkpoints/{archive.name}"

    done = straw.take(archives=archive.parent)

    assert done.manifest.archive == straw.archive
    assert done.manifest.checked.path == str(archive)


def test_an_archive_on_another_node_is_said_to_be_unchecked(straw: Straw, tmp_path: Path) -> None:
    straw.add("p")
    heard: list[Event] = []

    done = checkpoint("default/p", cluster=straw.cluster(), listener=heard.append)
    kept = straw.take(manifests=tmp_path)

    assert done.manifest.checked is None
    assert "on node node-1" in str(done.manifest.not_checked)
    assert done.manifest_path is None
    assert any(isinstance(e, Warned) and "was not checked" in e.message for e in heard)
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
def test_a_bad_archive_is_one_clear_error_and_the_engine_has_gone_on(
    straw: Straw, archive: Path, harm: Any, kind: type[CriaError], why: str
) -> None:
    engine = straw.add("p", container_id=f"containerd://{IN_THE_ARCHIVE}")
    straw.archive = str(archive)
    harm(archive)

    with pytest.raises(kind) as caught:
        straw.take()

    assert why in str(caught.value.details)
    assert engine.commands == DONE
    assert not Path(f"{archive}.cria.json").exists()


def test_the_archive_of_another_container_is_refused(straw: Straw, archive: Path) -> None:
    straw.add("p", container_id="containerd://ba9876543210")
    straw.archive = str(archive)

    with pytest.raises(CheckpointDamaged, match="of another container") as caught:
        straw.take()

    assert IN_THE_ARCHIVE in str(caught.value.details)


@pytest.mark.parametrize("path", ["/a/../../etc/shadow", "c.tar", "/a\0b"])
def test_a_path_that_could_lead_anywhere_is_refused(straw: Straw, path: str) -> None:
    engine = straw.add("p")
    straw.archive = path

    with pytest.raises(CheckpointDamaged, match="could lead anywhere"):
        straw.take()

    assert engine.commands == DONE


def test_a_manifest_that_cannot_be_written_is_one_clear_error(straw: Straw, tmp_path: Path) -> None:
    engine = straw.add("p")

    with pytest.raises(NotWritable, match="manifest"):
        straw.take(manifests=tmp_path / "nowhere")

    assert engine.commands == DONE


# What a node answers ---------------------------------------------------------------------------

RUNC = (
    "checkpointing of default/p/engine failed (rpc error: code = Unknown desc = failed to checkpoint:"
    " runc did not terminate: criu failed: type NOTIFY errno 0 log file: /run/x/criu-dump.log)"
)
GATE_OFF = "rpc error: code = Unimplemented desc = unknown method CheckpointContainer for service RuntimeService"
FORBIDDEN = (
    "Forbidden (user=kube-apiserver, verb=create, resource=nodes, subresource=checkpoint(proxy))"
)


@pytest.mark.parametrize(
    ("refused", "kind", "why", "cure"),
    [
        (status(401, "Unauthorized"), ClusterForbids, "Unauthorized", "--kubeconfig"),
        (status(403, "no"), ClusterForbids, "create nodes/proxy", "rbac"),
        (Refused(403, FORBIDDEN), ClusterForbids, "API server's own user", "rbac"),
        (
            Refused(404, "404 page not found"),
            CheckpointApiMissing,
            "ContainerCheckpoint",
            "feature",
        ),
        (Refused(404, "container x does not exist"), NoSuchPod, "does not exist", "get pods"),
        (Refused(500, RUNC), DumpFailed, "criu failed", "CRIU's log"),
        (Refused(500, "CRIU binary not found or too old"), DumpFailed, "CRIU", "node install"),
        (Refused(500, GATE_OFF), CheckpointApiMissing, "runtime cannot", "node install"),
        (Refused(500, "context deadline exceeded"), CheckpointTimedOut, "deadline", "--timeout"),
        (Refused(500, f"Canceled desc = {BROKEN_OFF}"), CheckpointTimedOut, "RST", "--timeout"),
        (
            status(503, "error trying to reach service"),
            ClusterUnreachable,
            "reach",
            "describe node",
        ),
        (Refused(502, ""), ClusterUnreachable, "502", "describe node"),
        (
            status(503, "error trying to reach service: unexpected EOF"),
            CheckpointTimedOut,
            "EOF",
            "task resume",
        ),
        (Refused(200, "{}"), CheckpointApiMissing, "{}", "kubelet"),
    ],
)
def test_what_a_node_answers_has_a_meaning_and_a_cure_and_the_engine_goes_on(
    straw: Straw, refused: Refused, kind: type[CriaError], why: str, cure: str
) -> None:
    engine = straw.add("p")
    straw.standin.refuse["checkpoint"] = refused

    with pytest.raises(kind) as caught:
        straw.take()

    assert why in str(caught.value.details)
    assert cure in str(caught.value.remedy)
    assert engine.commands == DONE
    assert not engine.paused


@pytest.mark.parametrize(
    ("lost", "kind"),
    [
        (httpx2.RemoteProtocolError("server disconnected"), CheckpointTimedOut),
        (httpx2.ReadError("connection reset"), CheckpointTimedOut),
        (httpx2.ConnectError("connection refused"), ClusterUnreachable),
    ],
)
def test_a_connection_that_is_lost_after_the_node_was_asked_may_leave_it_frozen(
    straw: Straw, monkeypatch: pytest.MonkeyPatch, lost: Exception, kind: type[CriaError]
) -> None:
    engine = straw.add("p")

    def post(*_words: Any, **_more: Any) -> Any:
        raise lost

    monkeypatch.setattr(straw.cluster()._http, "post", post)
    with pytest.raises(CriaError) as caught:
        straw.take()

    assert type(caught.value) is kind
    assert ("task resume" in str(caught.value.remedy)) is (kind is CheckpointTimedOut)
    assert engine.commands == DONE


@pytest.mark.parametrize("said", [RUNC, RUNC.replace("log file:", "path=")])
def test_criu_s_log_is_named(straw: Straw, said: str) -> None:
    straw.add("p")
    straw.standin.refuse["checkpoint"] = Refused(500, said)

    with pytest.raises(DumpFailed) as caught:
        straw.take()

    assert caught.value.log == "/run/x/criu-dump.log"


def test_a_node_that_does_not_answer_in_time_is_not_waited_for(
    straw: Straw, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = straw.add("p")
    monkeypatch.setattr(cluster, "GRACE_SECONDS", -0.7)
    straw.standin.checkpoint = lambda *_: str(time.sleep(1))

    with pytest.raises(CheckpointTimedOut, match="node-1") as caught:
        straw.take(timeout_seconds=1)

    assert "leaves a container frozen" in str(caught.value.details)
    assert "ctr --namespace k8s.io task resume p-engine" in str(caught.value.remedy)
    assert engine.commands == DONE


def test_whoever_interrupts_leaves_a_running_engine(
    straw: Straw, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = straw.add("p")

    def interrupt(*_words: object, **_options: object) -> str:
        assert engine.paused
        raise KeyboardInterrupt

    monkeypatch.setattr(Cluster, "checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        straw.take()

    assert engine.commands == DONE


# Who is asked ----------------------------------------------------------------------------------


def test_another_authority_s_certificate_is_refused(straw: Straw, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    engine = straw.add("p")
    wrong = kubeconfig(tmp_path / "wrong", straw.standin.url, stranger)

    with pytest.raises(ClusterUnreachable, match="API server") as at_the_server:
        straw.take(cluster=Cluster(kubeconfig=wrong))
    with pytest.raises(ClusterUnreachable, match="kubelet of node node-1") as at_the_kubelet:
        straw.take(cluster=straw.kubelets(ca=stranger))

    assert "CERTIFICATE_VERIFY_FAILED" in str(at_the_server.value.details)
    assert "--kubelet-ca" in str(at_the_kubelet.value.remedy)
    assert engine.commands == DONE, "only the second had found it"


def test_a_kubeconfig_that_turns_the_check_off_is_warned_of_and_does_not_do_for_kubelets(
    straw: Straw,
) -> None:
    text = straw.kubeconfig.read_text().replace(
        f"certificate-authority: {straw.ca}", "insecure-skip-tls-verify: true"
    )
    straw.kubeconfig.write_text(text)
    heard: list[Event] = []

    with pytest.raises(UsageError, match="who a kubelet is"):
        straw.cluster(kubelets=KubeletAccess(), listener=heard.append)

    assert [event.message for event in heard if isinstance(event, Warned)] == [
        f"{straw.kubeconfig} turns off the check of who the API server is"
    ]


def test_nobody_answers(straw: Straw, tmp_path: Path) -> None:
    with standing_in(tmp_path) as (_, gone, _ca):
        pass

    with pytest.raises(ClusterUnreachable, match="API server"):
        straw.take(cluster=Cluster(kubeconfig=gone))


def test_a_wrong_token_is_told(straw: Straw, tmp_path: Path) -> None:
    wrong = kubeconfig(tmp_path / "wrong", straw.standin.url, straw.ca, token="x")
    engine = straw.add("p")
    straw.standin.refuse["proxy"] = Refused(200, "unreached")

    with pytest.raises(ClusterForbids, match="who asks"):
        straw.take(cluster=Cluster(kubeconfig=wrong))

    assert engine.commands == []


@pytest.mark.parametrize("text", ["", "clusters: []", "{", "contexts: [1]"])
def test_a_kubeconfig_that_is_none_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)

    with pytest.raises(KubernetesMissing, match="credentials"):
        Cluster(kubeconfig=path)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightkube", None)

    with pytest.raises(KubernetesMissing) as caught:
        Cluster()

    assert caught.value.remedy == "from cria's checkout: pip install '.[kubernetes]'"


# Which container -------------------------------------------------------------------------------

WAITING = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m"}}
ENDED = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


@pytest.mark.parametrize(
    ("changes", "place", "kind", "why"),
    [
        ({}, "default/gone", NoSuchPod, "not found"),
        ({}, "default/p/other", NoSuchPod, "it has engine"),
        ({"state": WAITING}, "default/p", PodNotRunning, "CrashLoopBackOff: back-off 5m"),
        ({"state": ENDED}, "default/p", PodNotRunning, "status 137: OOMKilled"),
        ({"node": "", "phase": "Pending"}, "default/p", PodNotRunning, "no node yet"),
        ({"metadata": {"deletionTimestamp": "x"}}, "default/p", PodNotRunning, "deleted"),
    ],
)
def test_a_container_that_cannot_be_checkpointed_is_not_touched(
    straw: Straw, changes: dict[str, Any], place: str, kind: type[CriaError], why: str
) -> None:
    engine = straw.add("p", **changes)

    with pytest.raises(kind) as caught:
        straw.take(place)

    assert why in str(caught.value.details)
    assert engine.commands == straw.posts == []


def test_of_several_containers_one_must_be_named(straw: Straw) -> None:
    straw.add("p", "engine", "proxy")

    with pytest.raises(AmbiguousTarget) as caught:
        straw.take("default/p")
    done = straw.take("default/p/proxy")

    assert "default/p/engine" in str(caught.value.remedy)
    assert done.manifest.container.container == "proxy"


@pytest.mark.parametrize(
    "text", ["p", "a/b/c/d", "default/", "default/../x", "Default/p", "a/b?/c"]
)
def test_a_name_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="does not name a container"):
        parse(text)


# The still point -------------------------------------------------------------------------------


def test_an_engine_that_does_not_come_to_a_still_point_is_not_checkpointed(straw: Straw) -> None:
    engine = straw.add("p")
    engine.fail = "quiesce"

    with pytest.raises(QuiesceFailed) as caught:
        straw.take()

    assert "rank 1 did not come" in str(caught.value.details)
    assert straw.posts == []
    assert not engine.paused


def test_an_engine_whose_part_of_cria_is_older_has_the_lease_it_has(straw: Straw) -> None:
    engine = straw.add("p")

    def ask(command: str, seconds: float, **words: Any) -> dict[str, Any]:
        if command == "renew":
            raise Failed("no such command: renew; there are pause")
        return type(engine).ask(engine, command, seconds, **words)

    engine.ask = ask  # type: ignore[method-assign]
    done = straw.take()

    assert done.manifest.still.lease_seconds is None
    assert straw.paused_then == {"p": True}


def test_a_container_without_an_engine_is_checkpointed_as_it_stands(straw: Straw) -> None:
    straw.add("p")
    straw.standin.run = lambda *_: (0, '{"engines": []}', "")
    heard: list[Event] = []

    done = checkpoint("default/p", cluster=straw.cluster(), listener=heard.append)

    assert done.manifest.still.by == "none"
    assert "inside no engine" in str(done.manifest.still.why_not)
    assert any(isinstance(event, Warned) for event in heard)


@pytest.mark.parametrize("by", ["hook", "none"])
def test_where_it_is_not_for_us_nothing_is_run_in_the_container(straw: Straw, by: Any) -> None:
    engine = straw.add("p")

    done = straw.take(quiesce=QuiesceOptions(by=by))

    assert engine.commands == []
    assert done.manifest.still.by == by
    assert done.manifest.still.resumed is None


@pytest.mark.parametrize(
    ("ran", "why"),
    [
        ((127, "", "python3: not found"), "python3: not found"),
        ((0, "hello", ""), "hello"),
    ],
)
def test_a_container_in_which_nothing_can_be_run_is_not_checkpointed(
    straw: Straw, ran: Any, why: str
) -> None:
    straw.add("p")
    straw.standin.run = lambda *_: ran

    with pytest.raises(QuiesceFailed) as caught:
        straw.take()

    assert why in str(caught.value.details)
    assert straw.posts == []


@pytest.mark.parametrize(
    ("refused", "kind", "why"),
    [
        (status(403, "no"), ClusterForbids, "create and get pods/exec"),
        (status(404, "no"), NoSuchPod, "gone"),
        (status(400, "no"), PodNotRunning, "answered 400 to exec"),
    ],
)
def test_an_exec_that_is_refused_is_one_clear_error(
    straw: Straw, refused: Refused, kind: type[CriaError], why: str
) -> None:
    straw.add("p")
    straw.standin.refuse["exec"] = refused

    with pytest.raises(kind) as caught:
        straw.take()

    assert why in f"{caught.value} {caught.value.details}"
    assert straw.posts == []


def test_an_engine_that_cannot_be_told_to_go_on_is_warned_of(straw: Straw) -> None:
    straw.add("p")
    heard: list[Event] = []

    def checkpointed(*_words: object) -> str:
        straw.standin.refuse["exec"] = status(500, "no")
        return "/a.tar"

    straw.standin.checkpoint = checkpointed
    done = checkpoint("default/p", cluster=straw.cluster(), listener=heard.append)

    assert done.manifest.still.resumed is None
    assert any(isinstance(e, Warned) and "not told to go on" in e.message for e in heard)


def test_what_is_sent_to_a_container_runs_there_by_itself() -> None:
    """With nothing of cria on its path, and a command that touches no engine."""
    command = [sys.executable, "-I", "-S", "-c", quiesce._LOADER, quiesce.packed_sources()]

    done = subprocess.run(
        [*command, '{"command": "nonsense"}'], capture_output=True, text=True, check=True, cwd="/"
    )

    assert json.loads(done.stdout) == {"error": "no such command: nonsense"}


def test_what_is_sent_is_small_enough_for_a_url() -> None:
    assert len(quiesce.packed_sources()) < 8000


def test_on_the_node_a_container_is_known_by_its_cgroup(tmp_path: Path) -> None:
    found = straw_found("c0ffee")
    for pid, parent, cgroup in ((7, 1, "/"), (8, 7, "/pods/c0ffee"), (9, 8, "/pods/c0ffee")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::{cgroup}\n")
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a b) S {parent} 0")

    assert quiesce.find_root_process(found, tmp_path) == 8
    with pytest.raises(NoSuchProcess, match="no process here"):
        quiesce.find_root_process(msgspec.structs.replace(found, container_id="ba11"), tmp_path)


def straw_found(container_id: str) -> Any:
    from cria.kubernetes.kubelet.pods import Pod, find_running
    from tests.kubernetes.standin import pod

    return find_running(msgspec.convert(pod("p", container_id=f"containerd://{container_id}"), Pod))
