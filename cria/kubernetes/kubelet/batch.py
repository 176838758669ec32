"""Checkpoint many containers: several at a time, one a node, with retries where these can help, and one report."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from cria.errors import ClusterUnreachable, CriaError, NoSuchPod, SomeNotCheckpointed
from cria.events import Event, Listener, Progress, Warned, nobody
from cria.kubernetes.kubelet.checkpoint import (
    CheckpointOptions,
    CheckpointState,
    ContainerCheckpoint,
    resume,
    run,
)
from cria.kubernetes.kubelet.cluster import Cluster
from cria.kubernetes.kubelet.pods import ContainerRef, Pod


class Concurrency(msgspec.Struct, frozen=True, kw_only=True):
    """How many containers are checkpointed at once, in all and on one node, and how often one is tried.

    A try that fails because the cluster cannot be reached is repeated after `retry_seconds`, then after twice as
    many. What a node has answered is final: to try that again is for the caller, such as a Job.
    """

    at_once: int = 4
    per_node: int = 1
    tries: int = 3
    retry_seconds: float = 1.0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an error."""

    code: str
    message: str
    details: str | None
    remedy: str | None

    @classmethod
    def of(cls, error: CriaError) -> Failure:
        return cls(
            code=error.code, message=error.message, details=error.details, remedy=error.remedy
        )


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one container: its checkpoint, or the failure."""

    container: str = msgspec.field(name="place")
    node: str
    tries: int
    seconds: float
    checkpoint: ContainerCheckpoint | None = msgspec.field(name="done", default=None)
    failure: Failure | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for each container, in the order of their names."""

    outcomes: tuple[Outcome, ...]
    wall_seconds: float

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.failure)

    def raise_if_failed(self) -> None:
        """Raise SomeNotCheckpointed with the containers that were not checkpointed."""
        if self.failed:
            raise SomeNotCheckpointed(
                f"{len(self.failed)} of {len(self.outcomes)} containers were not checkpointed",
                details="\n".join(
                    f"{outcome.container}: {outcome.failure.message}"
                    for outcome in self.outcomes
                    if outcome.failure
                ),
                remedy="correct what each message names, then checkpoint these containers again",
            )


def report_of_one(checkpoint: ContainerCheckpoint) -> Report:
    """Return the report of one container that was checkpointed by itself."""
    container, seconds = checkpoint.manifest.container, checkpoint.manifest.timings.wall_seconds
    outcome = Outcome(
        container=str(container),
        node=container.node,
        tries=1,
        seconds=seconds,
        checkpoint=checkpoint,
    )
    return Report(outcomes=(outcome,), wall_seconds=seconds)


def checkpoint_all(
    selector: str,
    *,
    cluster: Cluster,
    namespace: str | None = None,
    node: str | None = None,
    container: str | None = None,
    options: CheckpointOptions | None = None,
    concurrency: Concurrency | None = None,
    listener: Listener | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Checkpoint a container of each pod that matches a label selector, on all nodes or only on `node`.

    Pods that have ended are left out. When `stop` is set, checkpoints that have begun are finished and no other
    begins. Raises NoSuchPod when there are no pods.
    """
    pods = cluster.list_pods(selector, namespace=namespace, node=node)
    pods = tuple(pod for pod in pods if pod.status.phase not in ("Succeeded", "Failed"))
    if not pods:
        raise NoSuchPod(
            f"no pod matches {selector}",
            details=f"in {namespace or 'any namespace'}, on {node or 'any node'}",
            remedy="see which pods there are: kubectl get pods --all-namespaces --show-labels",
        )
    jobs = [
        _Job(ref=_container_ref(pod, container), node=pod.spec.node_name)
        for pod in sorted(pods, key=str)
    ]
    batch = _Batch(
        jobs=jobs,
        cluster=cluster,
        options=options or CheckpointOptions(),
        concurrency=concurrency or Concurrency(),
        listener=listener or nobody,
        stop=stop or threading.Event(),
    )
    return batch.run()


def _container_ref(pod: Pod, container: str | None) -> ContainerRef:
    metadata = pod.metadata
    return ContainerRef(namespace=metadata.namespace, pod=metadata.name, container=container)


@dataclass(kw_only=True)
class _Job:
    """One container that waits, is being checkpointed, or has an outcome."""

    ref: ContainerRef
    node: str
    phase: Literal["waiting", "running", "ended"] = "waiting"
    state: CheckpointState | None = None
    outcome: Outcome | None = None


@dataclass(kw_only=True)
class _Batch:
    """Threads that each take the next container whose node is free. They end with the process."""

    jobs: Sequence[_Job]
    cluster: Cluster
    options: CheckpointOptions
    concurrency: Concurrency
    listener: Listener
    stop: threading.Event
    changed: threading.Condition = field(default_factory=threading.Condition)
    interrupted: bool = False

    def run(self) -> Report:
        start = time.monotonic()
        for _ in range(min(self.concurrency.at_once, len(self.jobs))):
            threading.Thread(target=self._work, daemon=True).start()
        try:
            with self.changed:
                self.changed.wait_for(self._is_over)
        except BaseException:
            self._interrupt()
            raise
        outcomes = tuple(job.outcome or _not_begun(job) for job in self.jobs)
        return Report(outcomes=outcomes, wall_seconds=time.monotonic() - start)

    def _is_over(self) -> bool:
        phases = Counter(job.phase for job in self.jobs)
        return not phases["running"] and (not phases["waiting"] or self.stop.is_set())

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                job.outcome = self._checkpoint(job)
            finally:
                with self.changed:
                    job.phase = "ended"
                    self.changed.notify_all()

    def _next_job(self) -> _Job | None:
        """Wait for a container whose node is free, and take it. Returns None when no container waits any more."""
        with self.changed:
            while True:
                waiting = [job for job in self.jobs if job.phase == "waiting"]
                if not waiting or self.stop.is_set():
                    return None
                busy = Counter(job.node for job in self.jobs if job.phase == "running")
                free = (job for job in waiting if busy[job.node] < self.concurrency.per_node)
                if (job := next(free, None)) is not None:
                    job.phase = "running"
                    return job
                self.changed.wait()

    def _checkpoint(self, job: _Job) -> Outcome:
        start, tries = time.monotonic(), 0
        checkpoint = failure = None
        while checkpoint is None:
            tries += 1
            try:
                checkpoint = self._try(job)
            except CriaError as error:
                failure = Failure.of(error)
                if not self._can_retry(error, tries):
                    break
                self.listener(Warned(message=f"{job.ref}: {error}; cria tries again"))
                self.stop.wait(self.concurrency.retry_seconds * 2 ** (tries - 1))
            except Exception as bug:  # noqa: BLE001 - a bug met with one container does not end the others
                failure = Failure.of(CriaError(f"a bug in cria: {type(bug).__name__}: {bug}"))
                break
        return Outcome(
            container=str(checkpoint.manifest.container if checkpoint else job.ref),
            node=job.node,
            tries=tries,
            seconds=time.monotonic() - start,
            checkpoint=checkpoint,
            failure=None if checkpoint else failure,
        )

    def _try(self, job: _Job) -> ContainerCheckpoint:
        job.state = CheckpointState(
            ref=job.ref,
            cluster=self.cluster,
            options=self.options,
            listener=with_name(str(job.ref), self.listener),
        )
        if self.interrupted:  # between two tries, so that `_interrupt` has not seen this state
            job.state.cancel()
            job.state.raise_if_cancelled()
        return run(job.state)

    def _can_retry(self, error: CriaError, tries: int) -> bool:
        return (
            isinstance(error, ClusterUnreachable)
            and tries < self.concurrency.tries
            and not self.stop.is_set()
        )

    def _interrupt(self) -> None:
        """Send no further request to a node, and resume the engines that are quiesced."""
        self.interrupted = True
        self.stop.set()
        states = [job.state for job in self.jobs if job.phase == "running" and job.state]
        for (
            state
        ) in states:  # all of them first: a request that begins now would be cancelled by our end
            state.cancel()
        for state in states:
            resume(state)


def _not_begun(job: _Job) -> Outcome:
    failure = Failure(code="interrupted", message="not begun", details=None, remedy=None)
    return Outcome(container=str(job.ref), node=job.node, tries=0, seconds=0.0, failure=failure)


def with_name(name: str, listener: Listener) -> Listener:
    """Return a listener that passes events on with the name of a container before the title of each step."""

    def notify(event: Event) -> None:
        if isinstance(event, Warned | Progress):
            listener(event)
        else:
            listener(msgspec.structs.replace(event, title=f"{name}: {event.title}"))

    return notify
