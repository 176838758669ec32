"""Checkpoint many containers: so many at once, one a node, each tried again where that can help; one report."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from cria.errors import ClusterUnreachable, CriaError, NoSuchPod, SomeNotCheckpointed
from cria.events import Event, Listener, Progress, Warned, nobody
from cria.kubernetes.kubelet.checkpoint import (
    CheckpointOptions,
    CheckpointState,
    ContainerCheckpoint,
    begin,
    give_up,
    interrupted,
    resume,
    run,
)
from cria.kubernetes.kubelet.cluster import Cluster
from cria.kubernetes.kubelet.pods import ContainerRef, Pod


class Concurrency(msgspec.Struct, frozen=True, kw_only=True):
    """How the work is shared out: so many at once, so many on one node, so many tries of each.

    A try that fails because the cluster cannot be reached is repeated after `pause_seconds`, then twice
    as many; what a node answered is not asked again: that is for whoever runs cria, as a Job does.
    """

    at_once: int = 4
    per_node: int = 1
    tries: int = 3
    pause_seconds: float = 1.0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an error."""

    code: str
    message: str
    details: str | None
    remedy: str | None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one container: `done`, or `failure` says why not."""

    place: str
    node: str
    tries: int
    seconds: float
    done: ContainerCheckpoint | None = None
    failure: Failure | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each container, in the order of their names."""

    outcomes: tuple[Outcome, ...]
    wall_seconds: float

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(each for each in self.outcomes if each.failure)

    def raise_if_failed(self) -> None:
        """Raises SomeNotCheckpointed, which names them."""
        if self.failed:
            raise SomeNotCheckpointed(
                f"{len(self.failed)} of {len(self.outcomes)} containers were not checkpointed",
                details="\n".join(
                    f"{e.place}: {e.failure.message}" for e in self.failed if e.failure
                ),
                remedy="mend what is named, then checkpoint those",
            )


def report_of_one(done: ContainerCheckpoint) -> Report:
    """The report on one container that was checkpointed by itself."""
    container, seconds = done.manifest.container, done.manifest.timings.wall_seconds
    outcome = Outcome(
        place=str(container), node=container.node, tries=1, seconds=seconds, done=done
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
    """Checkpoint a container in every pod that fits a label selector, on every node or only on `node`.

    Pods that do not run and never will again are passed over. When `stop` is set, what has begun is
    finished and no other begins. Raises NoSuchPod when there are none.
    """
    pods = cluster.pods(selector, namespace=namespace, node=node)
    alive = [pod for pod in pods if pod.status.phase not in ("Succeeded", "Failed")]
    if not alive:
        raise NoSuchPod(
            f"no pod fits {selector}",
            details=f"in {namespace or 'any namespace'}, on {node or 'any node'}",
            remedy="see which there are: kubectl get pods --all-namespaces --show-labels",
        )
    alive.sort(key=str)
    jobs = [_Job(place=_place(pod, container), node=pod.spec.node_name) for pod in alive]
    stopped = stop or threading.Event()
    return _Pool(cluster, options, concurrency or Concurrency(), listener or nobody, stopped).run(
        jobs
    )


def _place(pod: Pod, container: str | None) -> ContainerRef:
    names = pod.metadata
    return ContainerRef(namespace=names.namespace, pod=names.name, container=container)


@dataclass(kw_only=True)
class _Job:
    """One container that waits, is being checkpointed, or has its outcome."""

    place: ContainerRef
    node: str
    state: Literal["waiting", "running", "ended"] = "waiting"
    work: CheckpointState | None = None
    outcome: Outcome | None = None


@dataclass
class _Pool:
    """Threads that each take the next container whose node is free. They end with the process."""

    cluster: Cluster
    options: CheckpointOptions | None
    concurrency: Concurrency
    tell: Listener
    stopped: threading.Event
    changed: threading.Condition = field(default_factory=threading.Condition)
    abandoned: bool = False

    def run(self, jobs: Sequence[_Job]) -> Report:
        begun = time.monotonic()
        for _ in range(min(self.concurrency.at_once, len(jobs))):
            threading.Thread(target=self._work_on, args=(jobs,), daemon=True).start()
        try:
            with self.changed:
                self.changed.wait_for(lambda: self._is_over(jobs))
        except BaseException:
            self._abandon(jobs)
            raise
        outcomes = tuple(job.outcome or _not_begun(job) for job in jobs)
        return Report(outcomes=outcomes, wall_seconds=time.monotonic() - begun)

    def _is_over(self, jobs: Sequence[_Job]) -> bool:
        begun = [job for job in jobs if job.state != "waiting"]
        ended = all(job.state == "ended" for job in begun)
        return ended and (len(begun) == len(jobs) or self.stopped.is_set())

    def _work_on(self, jobs: Sequence[_Job]) -> None:
        while (job := self._next(jobs)) is not None:
            try:
                job.outcome = self._outcome(job)
            finally:
                with self.changed:
                    job.state = "ended"
                    self.changed.notify_all()

    def _next(self, jobs: Sequence[_Job]) -> _Job | None:
        """Wait for a container whose node is free, and take it; None when none waits any more."""
        with self.changed:
            while True:
                waiting = [job for job in jobs if job.state == "waiting"]
                if not waiting or self.stopped.is_set():
                    return None
                busy = Counter(job.node for job in jobs if job.state == "running")
                free = (job for job in waiting if busy[job.node] < self.concurrency.per_node)
                if (job := next(free, None)) is not None:
                    job.state = "running"
                    return job
                self.changed.wait()

    def _outcome(self, job: _Job) -> Outcome:
        begun, tries = time.monotonic(), 0
        done = failure = None
        while done is None:
            tries += 1
            try:
                done = self._try(job)
            except CriaError as error:
                failure = _failure(error)
                if not self._worth_another(error, tries):
                    break
                self.tell(Warned(message=f"{job.place}: {error}; it is tried again"))
                self.stopped.wait(self.concurrency.pause_seconds * 2 ** (tries - 1))
            except Exception as bug:  # noqa: BLE001 - one container's bug is not the others' end
                failure = _failure(CriaError(f"a bug in cria: {type(bug).__name__}: {bug}"))
                break
        return Outcome(
            place=str(done.manifest.container if done else job.place),
            node=job.node,
            tries=tries,
            seconds=time.monotonic() - begun,
            done=done,
            failure=None if done else failure,
        )

    def _try(self, job: _Job) -> ContainerCheckpoint:
        listener = named(str(job.place), self.tell)
        job.work = begin(job.place, cluster=self.cluster, options=self.options, tell=listener)
        if self.abandoned:
            raise interrupted(job.work)
        return run(job.work)

    def _worth_another(self, error: CriaError, tries: int) -> bool:
        reached = not isinstance(error, ClusterUnreachable)
        return not reached and tries < self.concurrency.tries and not self.stopped.is_set()

    def _abandon(self, jobs: Sequence[_Job]) -> None:
        """We are told to end: ask no node any more, and let the engines go on that stand still."""
        self.abandoned = True
        self.stopped.set()
        begun = [job.work for job in jobs if job.state == "running" and job.work is not None]
        for work in begun:  # all of them first: a call that begins now would be broken off
            give_up(work)
        for work in begun:
            resume(work)


def _not_begun(job: _Job) -> Outcome:
    why = Failure(code="interrupted", message="not begun", details=None, remedy=None)
    return Outcome(place=str(job.place), node=job.node, tries=0, seconds=0.0, failure=why)


def named(name: str, listener: Listener) -> Callable[[Event], None]:
    """A listener that hears of each step whose it is."""

    def tell(event: Event) -> None:
        if isinstance(event, Warned | Progress):
            listener(event)
        else:
            listener(msgspec.structs.replace(event, title=f"{name}: {event.title}"))

    return tell


def _failure(error: CriaError) -> Failure:
    return Failure(
        code=error.code, message=error.message, details=error.details, remedy=error.remedy
    )
