"""Checkpoint containers by labels: so many at once, one a node, with a report on each."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from straw import Straw

from cria.cli.kubernetes.checkpoint import command
from cria.errors import NoSuchPod, SomeNotCheckpointed
from cria.events import Event, StepFinished, Warned
from cria.kubernetes.kubelet.batch import Concurrency, Report, checkpoint_all
from tests.kubernetes.standin import Refused, status
from tests.unit.cli.test_results import SCHEMA

QUICK = Concurrency(pause_seconds=0.01)


def take(straw: Straw, selector: str = "app=vllm", **options: Any) -> Report:
    return checkpoint_all(selector, cluster=straw.cluster(), **({"concurrency": QUICK} | options))


def test_every_pod_that_fits_is_checkpointed(straw: Straw) -> None:
    for name in ("c", "a", "b"):
        straw.add(name, node=f"node-{name}")
    straw.add("other", labels={"app": "web"})
    straw.add("done", phase="Succeeded")
    straw.standin.page = 2

    report = take(straw)

    assert [each.place for each in report.outcomes] == [f"default/{n}/engine" for n in "abc"]
    assert not report.failed
    assert straw.paused_then == {"a": True, "b": True, "c": True}
    assert not any(engine.paused for engine in straw.engines.values())


def test_on_one_node_and_in_one_namespace(straw: Straw) -> None:
    straw.add("a", node="node-a")
    straw.add("b", node="node-b")

    report = take(straw, namespace="default", node="node-b")

    assert [each.node for each in report.outcomes] == ["node-b"]
    assert "GET api/v1/namespaces/default/pods" in straw.standin.asked


@pytest.mark.parametrize(
    ("concurrency", "most", "most_of_one"),
    [
        (Concurrency(at_once=4), 2, 1),
        (Concurrency(at_once=4, per_node=2), 4, 2),
        (Concurrency(at_once=1, per_node=2), 1, 1),
    ],
)
def test_no_more_at_once_than_allowed(
    straw: Straw, concurrency: Concurrency, most: int, most_of_one: int
) -> None:
    running: list[str] = []
    seen: list[tuple[int, int]] = []
    changed = threading.Condition()
    nodes = {f"p{number}": f"node-{number % 2}" for number in range(6)}
    for name, node in nodes.items():
        straw.add(name, node=node)

    def dump(name: str, container: str, seconds: int) -> str:
        with changed:
            running.append(nodes[name])
            seen.append((len(running), max(Counter(running).values())))
            changed.notify_all()
            # Until as many run as may, so that a slow machine sees them too; then a little, for one too many.
            changed.wait_for(lambda: max(together for together, _ in seen) >= most, timeout=5)
        time.sleep(0.02)
        with changed:
            running.remove(nodes[name])
        return "/a.tar"

    straw.standin.checkpoint = dump
    take(straw, concurrency=concurrency)

    assert max(together for together, _ in seen) == most
    assert max(of_one for _, of_one in seen) == most_of_one


def test_one_that_fails_is_reported_and_the_others_are_not_held_up(straw: Straw) -> None:
    engines = [straw.add(name, node=f"node-{name}") for name in "abc"]
    engines[1].fail = "quiesce"

    report = take(straw)

    assert [each.failure.code for each in report.failed if each.failure] == ["quiesce-failed"]
    assert [each.done is not None for each in report.outcomes] == [True, False, True]
    with pytest.raises(SomeNotCheckpointed, match="1 of 3") as caught:
        report.raise_if_failed()
    assert "default/b: the engine in default/b/engine" in str(caught.value.details)


@pytest.mark.parametrize(
    ("refused", "tries", "done"),
    [
        (status(503, "error trying to reach service"), 3, False),
        (Refused(500, "criu failed"), 1, False),
        (status(403, "no"), 1, False),
    ],
)
def test_only_what_can_pass_is_tried_again(
    straw: Straw, refused: Refused, tries: int, done: bool
) -> None:
    engine = straw.add("p")
    straw.standin.refuse["checkpoint"] = refused

    (outcome,) = take(straw).outcomes

    assert (outcome.tries, outcome.done is not None) == (tries, done)
    assert engine.commands == ["pause", "quiesce", "renew", "resume"] * tries


def test_a_try_that_works_ends_the_trying(straw: Straw) -> None:
    straw.add("p")
    answers = iter([status(503, "error trying to reach service"), None])

    def dump(*_words: object) -> str:
        if refused := next(answers):
            raise refused
        return "/a.tar"

    straw.standin.checkpoint = dump
    heard: list[Event] = []
    (outcome,) = take(straw, listener=heard.append).outcomes

    assert (outcome.tries, outcome.failure) == (2, None)
    assert any(isinstance(e, Warned) and "tried again" in e.message for e in heard)


def test_each_step_is_told_with_whose_it_is(straw: Straw) -> None:
    straw.add("a")
    straw.add("b")
    heard: list[Event] = []

    take(straw, listener=heard.append)

    steps = [event.title for event in heard if isinstance(event, StepFinished)]
    assert "default/a: check archive" in steps
    assert "default/b: check archive" in steps


def test_nobody_fits(straw: Straw) -> None:
    with pytest.raises(NoSuchPod, match="app=vllm"):
        take(straw)


def test_one_that_is_told_to_stop_begins_no_more(straw: Straw) -> None:
    stop = threading.Event()
    for name in "abc":
        straw.add(name)
    straw.standin.checkpoint = lambda *_: stop.set() or "/a.tar"  # type: ignore[func-returns-value]

    report = take(straw, stop=stop)

    assert [each.tries for each in report.outcomes] == [1, 0, 0]
    assert [each.failure.code for each in report.failed if each.failure] == ["interrupted"] * 2


def test_one_that_is_interrupted_lets_every_engine_go_on(
    straw: Straw, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    engine = straw.add("p")
    straw.standin.checkpoint = lambda *_: str(begun.set() or go.wait(10))

    def interrupt(_self: object, _over: object) -> None:
        begun.wait(10)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        wait_for = threading.Condition.wait_for
        main = threading.main_thread()
        patch.setattr(
            threading.Condition,
            "wait_for",
            lambda s, *w: (
                interrupt(s, w) if threading.current_thread() is main else wait_for(s, *w)
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            take(straw)
    go.set()

    assert engine.commands == ["pause", "quiesce", "renew", "resume"]


# The command -----------------------------------------------------------------------------------


def run(straw: Straw, *words: str) -> Any:
    with_cluster = ["--kubeconfig", str(straw.kubeconfig), "--tries", "1", *words]
    return CliRunner().invoke(command, with_cluster)


def test_the_report_is_a_table_or_a_document(straw: Straw) -> None:
    straw.add("a")
    straw.add("b").fail = "pause"

    table = run(straw, "-l", "app=vllm", "-n", "default")
    document = run(straw, "-l", "app=vllm", "--json", "--progress", "none")

    assert table.exit_code == document.exit_code == SomeNotCheckpointed.exit_status
    assert table.stdout.splitlines()[0].split()[:3] == ["CONTAINER", "NODE", "SECONDS"]
    assert "none: quiesce-failed" in table.stdout
    assert "1 of 2 containers were not checkpointed" in table.stderr
    told = json.loads(document.stdout)
    schema = json.loads((SCHEMA / "kubernetes-checkpoint.json").read_text())
    Draft202012Validator(schema).validate(told)
    assert [each["done"] is None for each in told["outcomes"]] == [False, True]


def test_one_container_is_a_path_or_the_same_document(straw: Straw) -> None:
    straw.add("p")

    plain = run(straw, "default/p")
    document = run(straw, "default/p", "--json", "--progress", "none")

    assert plain.stdout.startswith("/var/lib/kubelet/checkpoints/checkpoint-p_default-engine-")
    assert "resume engine" in plain.stderr
    schema = json.loads((SCHEMA / "kubernetes-checkpoint.json").read_text())
    Draft202012Validator(schema).validate(json.loads(document.stdout))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name either"),
        (["default/p", "-l", "app=vllm"], "Name either"),
        (["default/p", "--kubelet-ca", "/ca.pem"], "with --kubelet only"),
        (["default/p", "--lease", "601"], "lease"),
    ],
)
def test_words_that_do_not_fit_are_told(straw: Straw, words: list[str], said: str) -> None:
    done = run(straw, *words)

    assert done.exit_code == 2
    assert said in done.output


def test_the_steps_can_be_read(straw: Straw) -> None:
    assert (
        run(straw, "--explain").stdout.splitlines()[2]
        == "have the kubelet checkpoint the container"
    )
