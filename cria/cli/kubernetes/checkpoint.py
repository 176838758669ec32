"""cria kubernetes checkpoint: checkpoint containers and print where their archives are."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from cria.cli import failure, output
from cria.errors import SomeNotCheckpointed
from cria.events import Event, Listener, StepFailed, StepFinished, StepStarted
from cria.kubernetes.kubelet.checkpoint import (
    CHECKPOINT_STEPS,
    REQUEST_CHECKPOINT,
    TIMEOUT_SECONDS,
    CheckpointOptions,
    checkpoint,
)
from cria.kubernetes.kubelet.quiesce import QuiesceOptions, Quiescer
from cria.model.manifest import Inflight
from cria.model.units import size

if TYPE_CHECKING:
    from cria.kubernetes.kubelet.batch import Outcome, Report
    from cria.kubernetes.kubelet.cluster import Cluster

FILE = click.Path(path_type=Path, dir_okay=False)
DIRECTORY = click.Path(path_type=Path, file_okay=False)
SECONDS = click.FloatRange(min=0, min_open=True)


@click.command
@click.argument("container_ref", required=False, metavar="[NS/POD[/CONTAINER]]")
@click.option("-l", "--selector", help="Checkpoint every pod with these labels.")
@click.option("-n", "--namespace", help="With -l: pods of this namespace.  [default: all]")
@click.option("--node", help="With -l: pods on this node.  [default: all]")
@click.option("-c", "--container", help="With -l: the container, where pods have several.")
@click.option(
    "--at-once",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="With -l: the number of checkpoints at a time.",
)
@click.option(
    "--per-node",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="With -l: the number of checkpoints at a time on one node.",
)
@click.option(
    "--tries",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="With -l: the number of tries where the cluster cannot be reached.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.IntRange(1),
    default=TIMEOUT_SECONDS,
    show_default=True,
    help="Seconds that the node may take for one container.",
)
@click.option(
    "--quiesce",
    "quiescer",
    type=click.Choice(["exec", "node", "hook", "none"]),
    default="exec",
    show_default=True,
    help="Quiesce the engine by exec in the container, from the node itself, by the node's action script, or not.",
)
@click.option(
    "--inflight",
    type=click.Choice(["keep", "drain", "abort"]),
    default="keep",
    show_default=True,
    help="Requests in flight are kept and go on later, are waited for, or are aborted.",
)
@click.option(
    "--quiesce-seconds",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="Seconds to wait for the engine to be quiesced.",
)
@click.option(
    "--lease",
    "lease_seconds",
    type=click.FloatRange(min=1, max=600),
    default=60.0,
    show_default=True,
    help="Seconds after which the engine resumes by itself.",
)
@click.option(
    "--python",
    default="python3",
    show_default=True,
    help="The container's Python, for --quiesce exec.",
)
@click.option(
    "--kubeconfig",
    type=FILE,
    help="The credentials.  [default: the pod's own, $KUBECONFIG or ~/.kube/config]",
)
@click.option("--context", help="The context of the kubeconfig.  [default: its current one]")
@click.option(
    "--kubelet",
    metavar="auto|URL",
    help="Send the requests to each node's kubelet, or to one at a URL, instead of the API server.",
)
@click.option("--kubelet-ca", type=FILE, help="The CA that has signed the kubelets' certificates.")
@click.option(
    "--archives",
    type=DIRECTORY,
    help="Where the kubelet's directory of archives is mounted here.  [default: its own path]",
)
@click.option(
    "--manifests",
    type=DIRECTORY,
    help="Where to write manifests.  [default: beside the archives]",
)
@click.option("--explain", is_flag=True, help="Print the steps of a checkpoint and exit.")
@output.json_option
@output.progress_option
def command(
    container_ref: str | None,
    selector: str | None,
    namespace: str | None,
    node: str | None,
    container: str | None,
    at_once: int,
    per_node: int,
    tries: int,
    timeout_seconds: int,
    quiescer: Quiescer,
    inflight: Inflight,
    quiesce_seconds: float,
    lease_seconds: float,
    python: str,
    kubeconfig: Path | None,
    context: str | None,
    kubelet: str | None,
    kubelet_ca: Path | None,
    archives: Path | None,
    manifests: Path | None,
    explain: bool,
    as_json: bool,
    progress: str,
) -> None:
    """Checkpoint a container on its node while its engine is quiesced, and print the archive's path there.

    The engine resumes afterwards. With -l a container of each pod is checkpointed, and a table is printed.
    """
    if explain:
        click.echo("\n".join(step.title for step in CHECKPOINT_STEPS))
        return
    if bool(container_ref) == bool(selector):
        raise click.UsageError("Name either a container or labels: NS/POD/CONTAINER, or -l.")
    options = CheckpointOptions(
        quiesce=QuiesceOptions(
            by=quiescer,
            inflight=inflight,
            seconds=quiesce_seconds,
            lease_seconds=lease_seconds,
            python=python,
        ),
        timeout_seconds=timeout_seconds,
        archives=archives,
        manifests=manifests,
    )
    cluster = _cluster(kubeconfig, context, kubelet, kubelet_ca, output.listener(progress))
    if container_ref:
        _checkpoint_one(container_ref, cluster, options, as_json=as_json, progress=progress)
        return

    from cria.kubernetes.kubelet.batch import Concurrency, checkpoint_all

    # Lines of several containers come at once, so that none is shown live.
    listener = output.listener("lines" if progress == "auto" else progress)
    with SignalHandler() as signals:
        report = checkpoint_all(
            str(selector),
            cluster=cluster,
            namespace=namespace,
            node=node,
            container=container,
            options=options,
            concurrency=Concurrency(at_once=at_once, per_node=per_node, tries=tries),
            listener=signals.watch(listener),
            stop=signals.stop,
        )
    output.document(report) if as_json else click.echo(report_table(report))
    if report.failed:
        raise click.exceptions.Exit(_failed_status(report, as_json=as_json))


def _checkpoint_one(
    ref: str, cluster: Cluster, options: CheckpointOptions, *, as_json: bool, progress: str
) -> None:
    from cria.kubernetes.kubelet.batch import report_of_one

    with SignalHandler() as signals:
        listener = signals.watch(output.listener(progress))
        result = checkpoint(ref, cluster=cluster, options=options, listener=listener)
    if as_json:
        output.document(report_of_one(result))
        return
    if progress != "none":
        click.echo(f"\n{output.timings_table(result.manifest.timings)}", err=True)
    click.echo(result.manifest.archive)


def _cluster(
    kubeconfig: Path | None,
    context: str | None,
    kubelet: str | None,
    kubelet_ca: Path | None,
    listener: Listener,
) -> Cluster:
    from cria.kubernetes.kubelet.cluster import Cluster, KubeletAccess

    if kubelet_ca and not kubelet:
        raise click.UsageError("--kubelet-ca needs --kubelet.")
    url = None if kubelet == "auto" else kubelet
    return Cluster(
        kubeconfig=kubeconfig,
        context=context,
        kubelets=KubeletAccess(url=url, ca=kubelet_ca) if kubelet else None,
        listener=listener,
    )


def _failed_status(report: Report, *, as_json: bool) -> int:
    """Return the exit status of a report with failures; show the error where the report is not a document of it."""
    try:
        report.raise_if_failed()
    except SomeNotCheckpointed as error:
        if not as_json:
            failure.show(error, as_json=False)
    return SomeNotCheckpointed.exit_status


def report_table(report: Report) -> str:
    """Return a table with a row for each container."""
    head = ("container", "node", "seconds", "size", "quiesced by", "archive")
    return output.table(head, [_row(outcome) for outcome in report.outcomes])


def _row(outcome: Outcome) -> tuple[str, ...]:
    first = (outcome.container, outcome.node, f"{outcome.seconds:.1f}")
    if outcome.checkpoint is None:
        code = outcome.failure.code if outcome.failure else "interrupted"
        return (*first, "-", "-", f"none: {code}")
    manifest = outcome.checkpoint.manifest
    archive_size = size(manifest.checked.bytes) if manifest.checked else "not read"
    return (*first, archive_size, manifest.quiesce.by, manifest.archive)


class SignalHandler:
    """Handles SIGINT and SIGTERM while containers are checkpointed.

    A node's dump is waited for, because containerd (seen with 2.1.9) leaves a container frozen when the request is
    cancelled. So while a node dumps, the first signal only sets `stop`, and no other checkpoint begins. At any other
    time, and at the second signal, KeyboardInterrupt is raised, and engines that are quiesced resume.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._dumps = 0
        self._lock = threading.Lock()
        self._handlers: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> SignalHandler:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def watch(self, listener: Listener) -> Listener:
        """Return a listener that passes events on and counts the dumps that are in progress."""

        def notify(event: Event) -> None:
            match event:
                case StepStarted(step=step) if step == REQUEST_CHECKPOINT:
                    change = 1
                case StepFinished(step=step) | StepFailed(step=step) if step == REQUEST_CHECKPOINT:
                    change = -1
                case _:
                    change = 0
            with self._lock:
                self._dumps += change
            listener(event)

        return notify

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.stop.is_set() or not self._dumps:
            raise KeyboardInterrupt
        self.stop.set()
        click.echo(
            "waiting for a node's dump; if you interrupt again, its container may stay frozen",
            err=True,
        )


_Handler = Callable[[int, FrameType | None], object] | int | None
