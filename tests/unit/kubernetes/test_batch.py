"""Checkpoint containers by labels: several at a time, one a node, with a report on each."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner
from fake_cluster import FakeCluster
from jsonschema import Draft202012Validator

from cria.cli.kubernetes.checkpoint import command
from cria.errors import NoSuchPod, SomeNotCheckpointed
from cria.events import Event, StepFinished, Warned
from cria.kubernetes.kubelet.batch import Concurrency, Report, checkpoint_all
from tests.kubernetes.fake_api_server import HttpError, api_error
from tests.unit.cli.test_results import SCHEMA

QUICK = Concurrency(retry_seconds=0.01)
EVERY_COMMAND = ["pause", "quiesce", "renew", "resume"]


def take(fake_cluster: FakeCluster, selector: str = "app=vllm", **options: Any) -> Report:
    options = {"concurrency": QUICK} | options
    return checkpoint_all(selector, cluster=fake_cluster.connect(), **options)


def failure_codes(report: Report) -> list[str]:
    return [outcome.failure.code for outcome in report.failed if outcome.failure]


def test_every_pod_with_the_labels_is_checkpointed(fake_cluster: FakeCluster) -> None:
    for name in ("c", "a", "b"):
        fake_cluster.add(name, node=f"node-{name}")
    fake_cluster.add("other", labels={"app": "web"})
    fake_cluster.add("done", phase="Succeeded")
    fake_cluster.api.page_size = 2

    report = take(fake_cluster)

    assert [outcome.container for outcome in report.outcomes] == [
        f"default/{name}/engine" for name in "abc"
    ]
    assert not report.failed
    assert fake_cluster.paused_at_dump == {"a": True, "b": True, "c": True}
    assert not any(agent.paused for agent in fake_cluster.agents.values())


def test_pods_can_be_limited_to_a_node_and_a_namespace(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("a", node="node-a")
    fake_cluster.add("b", node="node-b")

    report = take(fake_cluster, namespace="default", node="node-b")

    assert [outcome.node for outcome in report.outcomes] == ["node-b"]
    assert "GET api/v1/namespaces/default/pods" in fake_cluster.api.requests


@pytest.mark.parametrize(
    ("concurrency", "most", "most_per_node"),
    [
        (Concurrency(at_once=4), 2, 1),
        (Concurrency(at_once=4, per_node=2), 4, 2),
        (Concurrency(at_once=1, per_node=2), 1, 1),
    ],
)
def test_no_more_run_at_once_than_are_allowed(
    fake_cluster: FakeCluster, concurrency: Concurrency, most: int, most_per_node: int
) -> None:
    running: list[str] = []
    seen: list[tuple[int, int]] = []
    changed = threading.Condition()
    nodes = {f"p{number}": f"node-{number % 2}" for number in range(6)}
    for name, node in nodes.items():
        fake_cluster.add(name, node=node)

    def dump(name: str, container: str, seconds: int) -> str:
        with changed:
            running.append(nodes[name])
            seen.append((len(running), max(Counter(running).values())))
            changed.notify_all()
            # Until as many run as may, so that a slow machine sees them too; then a little, for one too many.
            changed.wait_for(lambda: max(in_all for in_all, _ in seen) >= most, timeout=5)
        time.sleep(0.02)
        with changed:
            running.remove(nodes[name])
        return "/a.tar"

    fake_cluster.api.checkpoint = dump
    take(fake_cluster, concurrency=concurrency)

    assert max(in_all for in_all, _ in seen) == most
    assert max(on_one for _, on_one in seen) == most_per_node


def test_a_failure_is_reported_and_does_not_hold_up_the_others(fake_cluster: FakeCluster) -> None:
    agents = [fake_cluster.add(name, node=f"node-{name}") for name in "abc"]
    agents[1].fail = "quiesce"

    report = take(fake_cluster)

    assert failure_codes(report) == ["quiesce-failed"]
    assert [outcome.checkpoint is not None for outcome in report.outcomes] == [True, False, True]
    with pytest.raises(SomeNotCheckpointed, match="1 of 3") as caught:
        report.raise_if_failed()
    assert "default/b: the engine in default/b/engine" in str(caught.value.details)


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (api_error(503, "error trying to reach service"), 3),
        (HttpError(500, "criu failed"), 1),
        (api_error(403, "no"), 1),
    ],
)
def test_only_an_unreachable_cluster_is_tried_again(
    fake_cluster: FakeCluster, error: HttpError, tries: int
) -> None:
    agent = fake_cluster.add("p")
    fake_cluster.api.errors["checkpoint"] = error

    (outcome,) = take(fake_cluster).outcomes

    assert (outcome.tries, outcome.checkpoint) == (tries, None)
    assert agent.commands == EVERY_COMMAND * tries


def test_a_try_that_succeeds_is_the_last(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("p")
    errors = iter([api_error(503, "error trying to reach service"), None])

    def dump(*_arguments: object) -> str:
        if error := next(errors):
            raise error
        return "/a.tar"

    fake_cluster.api.checkpoint = dump
    events: list[Event] = []
    (outcome,) = take(fake_cluster, listener=events.append).outcomes

    assert (outcome.tries, outcome.failure) == (2, None)
    assert any(isinstance(e, Warned) and "tries again" in e.message for e in events)


def test_each_step_has_the_name_of_its_container(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("a")
    fake_cluster.add("b")
    events: list[Event] = []

    take(fake_cluster, listener=events.append)

    titles = [event.title for event in events if isinstance(event, StepFinished)]
    assert "default/a: verify archive" in titles
    assert "default/b: verify archive" in titles


def test_labels_that_no_pod_has_are_an_error(fake_cluster: FakeCluster) -> None:
    with pytest.raises(NoSuchPod, match="app=vllm"):
        take(fake_cluster)


def test_no_checkpoint_begins_after_stop(fake_cluster: FakeCluster) -> None:
    stop = threading.Event()
    for name in "abc":
        fake_cluster.add(name)
    fake_cluster.api.checkpoint = lambda *_: stop.set() or "/a.tar"  # type: ignore[func-returns-value]

    report = take(fake_cluster, stop=stop)

    assert [outcome.tries for outcome in report.outcomes] == [1, 0, 0]
    assert failure_codes(report) == ["interrupted"] * 2


def test_an_interrupted_batch_resumes_every_engine(
    fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    agent = fake_cluster.add("p")
    fake_cluster.api.checkpoint = lambda *_: str(begun.set() or go.wait(10))
    wait_for = threading.Condition.wait_for

    def interrupted_in_main_thread(condition: threading.Condition, *arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return wait_for(condition, *arguments)
        begun.wait(10)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "wait_for", interrupted_in_main_thread)
        with pytest.raises(KeyboardInterrupt):
            take(fake_cluster)
    go.set()

    assert agent.commands == EVERY_COMMAND


# The command -----------------------------------------------------------------------------------


def run(fake_cluster: FakeCluster, *arguments: str) -> Any:
    options = ["--kubeconfig", str(fake_cluster.kubeconfig), "--tries", "1"]
    return CliRunner().invoke(command, [*options, *arguments])


def test_a_report_is_a_table_or_a_document(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("a")
    fake_cluster.add("b").fail = "pause"

    table = run(fake_cluster, "-l", "app=vllm", "-n", "default")
    document = run(fake_cluster, "-l", "app=vllm", "--json", "--progress", "none")

    assert table.exit_code == document.exit_code == SomeNotCheckpointed.exit_status
    assert table.stdout.splitlines()[0].split()[:3] == ["CONTAINER", "NODE", "SECONDS"]
    assert "none: quiesce-failed" in table.stdout
    assert "1 of 2 containers were not checkpointed" in table.stderr
    report = json.loads(document.stdout)
    schema = json.loads((SCHEMA / "kubernetes-checkpoint.json").read_text())
    Draft202012Validator(schema).validate(report)
    assert [outcome["done"] is None for outcome in report["outcomes"]] == [False, True]


def test_the_document_keeps_its_keys(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("p")

    (outcome,) = json.loads(run(fake_cluster, "default/p", "--json").stdout)["outcomes"]

    assert set(outcome) == {"place", "node", "tries", "seconds", "done", "failure"}
    manifest = outcome["done"]["manifest"]
    assert (outcome["place"], manifest["via"]) == ("default/p/engine", "API server")
    assert manifest["still"]["engines"] == [{"workers": 2, "groups": 6, "dropped_bytes": 4096}]


def test_one_container_is_a_path_or_the_same_document(fake_cluster: FakeCluster) -> None:
    fake_cluster.add("p")

    plain = run(fake_cluster, "default/p")
    document = run(fake_cluster, "default/p", "--json", "--progress", "none")

    assert plain.stdout.startswith("/var/lib/kubelet/checkpoints/checkpoint-p_default-engine-")
    assert "resume engine" in plain.stderr
    schema = json.loads((SCHEMA / "kubernetes-checkpoint.json").read_text())
    Draft202012Validator(schema).validate(json.loads(document.stdout))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name either"),
        (["default/p", "-l", "app=vllm"], "Name either"),
        (["default/p", "--kubelet-ca", "/ca.pem"], "needs --kubelet"),
        (["default/p", "--lease", "601"], "lease"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(
    fake_cluster: FakeCluster, arguments: list[str], message: str
) -> None:
    result = run(fake_cluster, *arguments)

    assert result.exit_code == 2
    assert message in result.output


def test_explain_prints_the_steps(fake_cluster: FakeCluster) -> None:
    titles = run(fake_cluster, "--explain").stdout.splitlines()

    assert titles[1:4] == [
        "quiesce engine",
        "ask the kubelet for a checkpoint",
        "resume engine",
    ]
