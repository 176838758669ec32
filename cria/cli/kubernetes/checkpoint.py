"""cria kubernetes checkpoint: parse, call cria.kubernetes, print where the archives are."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cria.cli import output
from cria.events import Event, Listener, StepFailed, StepFinished, StepStarted
from cria.kubernetes.kubelet.checkpoint import DUMPING
from cria.model.units import size

if TYPE_CHECKING:
    from cria.kubernetes.kubelet.batch import Outcome, Report
    from cria.kubernetes.kubelet.checkpoint import CheckpointOptions
    from cria.kubernetes.kubelet.cluster import Cluster

FILE = click.Path(path_type=Path, dir_okay=False)
DIRECTORY = click.Path(path_type=Path, file_okay=False)
SECONDS = click.FloatRange(min=0, min_open=True)


@click.command
@click.argument("place", required=False, metavar="[NS/POD[/CONTAINER]]")
@click.option("-l", "--selector", help="In place of a pod: every pod with these labels.")
@click.option("-n", "--namespace", help="With -l: in this namespace, not in all.")
@click.option("--node", help="With -l: on this node only.")
@click.option("-c", "--container", help="With -l: the container, where pods have several.")
@click.option("--at-once", type=click.IntRange(1), default=4, help="With -l: so many at once.")
@click.option("--per-node", type=click.IntRange(1), default=1, help="With -l: so many on one node.")
@click.option(
    "--tries",
    type=click.IntRange(1),
    default=3,
    help="With -l: so often where the cluster cannot be reached.",
)
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=1800,
    help="Seconds the node may take for one container.",
)
@click.option(
    "--quiesce",
    type=click.Choice(["exec", "node", "hook", "none"]),
    default="exec",
    help="Who brings the engine to a still point: cria, by exec in the container or from the node itself; the node's hook; nobody.",
)
@click.option(
    "--inflight",
    type=click.Choice(["keep", "drain", "abort"]),
    default="keep",
    help="Requests that run are kept and go on later, waited for, or aborted.",
)
@click.option(
    "--quiesce-seconds", type=SECONDS, default=60.0, help="Seconds it may take to stand still."
)
@click.option(
    "--lease",
    type=click.FloatRange(min=1, max=600),
    default=60.0,
    help="Seconds after which an engine goes on that nobody resumes.",
)
@click.option("--python", default="python3", help="A Python in the container, for --quiesce exec.")
@click.option(
    "--kubeconfig", type=FILE, help="Credentials; else the pod's own, $KUBECONFIG, ~/.kube/config."
)
@click.option("--context", help="The one to use of the kubeconfig.")
@click.option(
    "--kubelet",
    metavar="auto|URL",
    help="Ask the kubelets themselves and not by way of the API server.",
)
@click.option("--kubelet-ca", type=FILE, help="What the kubelets' certificates are signed with.")
@click.option("--archives", type=DIRECTORY, help="Where the kubelet's archives are seen from here.")
@click.option("--manifests", type=DIRECTORY, help="Where manifests go; else beside the archives.")
@click.option("--explain", is_flag=True, help="Print the steps and stop.")
@output.json_option
@output.progress_option
def command(
    place: str | None,
    selector: str | None,
    explain: bool,
    as_json: bool,
    progress: str,
    **words: Any,
) -> None:
    """Have its node checkpoint a container, at a still point of its engine, which then goes on.

    The path of the archive on the node is printed. With -l the containers of many pods: a table.
    """
    from cria.kubernetes.kubelet.checkpoint import CHECKPOINT_STEPS

    if explain:
        click.echo("\n".join(step.title for step in CHECKPOINT_STEPS))
        return
    if bool(place) == bool(selector):
        raise click.UsageError("Name either a container or labels: NS/POD/CONTAINER, or -l.")
    if place:
        one(place, words, as_json=as_json, progress=progress)
    else:
        many(str(selector), words, as_json=as_json, progress=progress)


def one(place: str, words: dict[str, Any], *, as_json: bool, progress: str) -> None:
    from cria.kubernetes.kubelet.batch import report_of_one
    from cria.kubernetes.kubelet.checkpoint import checkpoint

    known = cluster(words, progress)
    with Ending() as ending:
        listener = ending.listen(output.listener(progress))
        done = checkpoint(place, cluster=known, options=options(words), listener=listener)
    if as_json:
        output.document(report_of_one(done))
        return
    if progress != "none":
        click.echo(f"\n{output.timings_table(done.manifest.timings)}", err=True)
    click.echo(done.manifest.archive)


def many(selector: str, words: dict[str, Any], *, as_json: bool, progress: str) -> None:
    from cria.kubernetes.kubelet.batch import Concurrency, checkpoint_all

    # Many are told of at once, so none has a line of its own.
    listener = output.listener("lines" if progress == "auto" else progress)
    known = cluster(words, progress)
    concurrency = Concurrency(
        at_once=words["at_once"], per_node=words["per_node"], tries=words["tries"]
    )
    with Ending() as ending:
        report = checkpoint_all(
            selector,
            cluster=known,
            namespace=words["namespace"],
            node=words["node"],
            container=words["container"],
            options=options(words),
            concurrency=concurrency,
            listener=ending.listen(listener),
            stop=ending.stop,
        )
    output.document(report) if as_json else click.echo(shown(report))
    if report.failed:
        raise click.exceptions.Exit(_some_failed(report, as_json=as_json))


def _some_failed(report: Report, *, as_json: bool) -> int:
    """The exit status; the error itself is told where the report is not already a document of it."""
    from cria.cli import failure
    from cria.errors import SomeNotCheckpointed

    try:
        report.raise_if_failed()
    except SomeNotCheckpointed as error:
        if not as_json:
            failure.show(error, as_json=False)
    return SomeNotCheckpointed.exit_status


def shown(report: Report) -> str:
    """One row for each container."""
    head = ("container", "node", "seconds", "size", "still point", "archive")
    return output.table(head, [_row(each) for each in report.outcomes])


def _row(outcome: Outcome) -> tuple[str, ...]:
    first = (outcome.place, outcome.node, f"{outcome.seconds:.1f}")
    if outcome.done is None:
        assert outcome.failure is not None
        return (*first, "-", "-", f"none: {outcome.failure.code}")
    manifest = outcome.done.manifest
    archived = size(manifest.checked.bytes) if manifest.checked else "not read"
    return (*first, archived, manifest.still.by, manifest.archive)


def cluster(words: dict[str, Any], progress: str) -> Cluster:
    from cria.kubernetes.kubelet.cluster import Cluster, KubeletAccess

    url, ca = words["kubelet"], words["kubelet_ca"]
    if ca and not url:
        raise click.UsageError("--kubelet-ca is of use with --kubelet only.")
    kubelets = KubeletAccess(url=None if url == "auto" else url, ca=ca) if url else None
    return Cluster(
        kubeconfig=words["kubeconfig"],
        context=words["context"],
        kubelets=kubelets,
        listener=output.listener(progress),
    )


def options(words: dict[str, Any]) -> CheckpointOptions:
    from cria.kubernetes.kubelet.checkpoint import CheckpointOptions
    from cria.kubernetes.kubelet.quiesce import QuiesceOptions

    wish = QuiesceOptions(
        by=words["quiesce"],
        inflight=words["inflight"],
        seconds=words["quiesce_seconds"],
        lease_seconds=words["lease"],
        python=words["python"],
    )
    return CheckpointOptions(
        quiesce=wish,
        timeout_seconds=words["timeout"],
        archives=words["archives"],
        manifests=words["manifests"],
    )


class Ending:
    """Hears SIGINT and SIGTERM, and by `listen` of the dumps that are under way.

    The first signal sets `stop` while there are any: they are waited for, and no other begins. Without
    any, and at the second signal, it interrupts; engines that stand still are then told to go on.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._dumping = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Ending:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self, listener: Listener) -> Listener:
        lock = threading.Lock()

        def tell(event: Event) -> None:
            match event:
                case StepStarted(step=step) if step == DUMPING:
                    change = 1
                case StepFinished(step=step) | StepFailed(step=step) if step == DUMPING:
                    change = -1
                case _:
                    change = 0
            with lock:
                self._dumping += change
            listener(event)

        return tell

    def _heard(self, _number: int, _frame: Any) -> None:
        if self.stop.is_set() or not self._dumping:
            raise KeyboardInterrupt
        self.stop.set()
        words = "a node is dumping and is waited for; once more, and its container may stay frozen"
        click.echo(words, err=True)
