"""The few words of the API server on a pod that cria reads. Source: the Kubernetes API, core/v1."""

from __future__ import annotations

import re

import msgspec

from cria.errors import AmbiguousTarget, NoSuchPod, PodNotRunning, UsageError


class _ApiObject(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of what the API server says, with what is not read left out."""


class ObjectMeta(_ApiObject, frozen=True):
    name: str
    namespace: str = ""
    uid: str = ""
    deletion_timestamp: str | None = None


class ContainerSpec(_ApiObject, frozen=True):
    name: str


class PodSpec(_ApiObject, frozen=True):
    containers: tuple[ContainerSpec, ...]
    init_containers: tuple[ContainerSpec, ...] = ()
    ephemeral_containers: tuple[ContainerSpec, ...] = ()
    node_name: str = ""

    @property
    def every(self) -> tuple[str, ...]:
        parts = (self.containers, self.init_containers, self.ephemeral_containers)
        return tuple(each.name for part in parts for each in part)


class ContainerStateRunning(_ApiObject, frozen=True):
    started_at: str | None = None


class ContainerStateWaiting(_ApiObject, frozen=True):
    reason: str | None = None
    message: str | None = None


class ContainerStateTerminated(_ApiObject, frozen=True):
    exit_code: int
    reason: str | None = None


class ContainerState(_ApiObject, frozen=True):
    running: ContainerStateRunning | None = None
    waiting: ContainerStateWaiting | None = None
    terminated: ContainerStateTerminated | None = None


class ContainerStatus(_ApiObject, frozen=True):
    name: str
    image: str = ""
    container_id: str = msgspec.field(name="containerID", default="")
    state: ContainerState = ContainerState()


class PodStatus(_ApiObject, frozen=True):
    phase: str = "Unknown"
    host_ip: str = msgspec.field(name="hostIP", default="")
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    ephemeral_container_statuses: tuple[ContainerStatus, ...] = ()

    def of(self, container: str) -> ContainerStatus | None:
        every = (
            *self.container_statuses,
            *self.init_container_statuses,
            *self.ephemeral_container_statuses,
        )
        return next((each for each in every if each.name == container), None)


class Pod(_ApiObject, frozen=True):
    metadata: ObjectMeta
    spec: PodSpec
    status: PodStatus = PodStatus()

    def __str__(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"


class ListMeta(_ApiObject, frozen=True):
    continues: str | None = msgspec.field(name="continue", default=None)


class PodList(_ApiObject, frozen=True):
    """A page of a list; `metadata.continues` is what to ask the next one with."""

    items: tuple[Pod, ...]
    metadata: ListMeta = ListMeta()


# Kubernetes' own rules for names; whatever fits them is safe as a part of a url.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


class ContainerRef(msgspec.Struct, frozen=True, kw_only=True):
    """A container by its names; None where the pod has only one."""

    namespace: str
    pod: str
    container: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, (self.namespace, self.pod, self.container)))


class RunningContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container that runs: `node` is the name of its node, `address` that of the node's kubelet."""

    namespace: str
    pod: str
    container: str
    pod_uid: str
    container_id: str
    image: str
    node: str
    address: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}/{self.container}"


def parse(text: str) -> ContainerRef:
    """Read NAMESPACE/POD or NAMESPACE/POD/CONTAINER. Raises UsageError."""
    words = text.split("/")
    rules = (_LABEL, _NAME, _LABEL)
    if len(words) not in (2, 3) or not all(map(re.Pattern.fullmatch, rules, words)):
        raise UsageError(
            f"{text!r} does not name a container",
            details="it is NAMESPACE/POD/CONTAINER, or NAMESPACE/POD where there is only one",
            remedy="list the pods: kubectl get pods --all-namespaces",
        )
    return ContainerRef(namespace=words[0], pod=words[1], container=words[2] if words[2:] else None)


def find_running(pod: Pod, container: str | None = None) -> RunningContainer:
    """The container of a pod, as the API server describes it.

    Raises NoSuchPod, AmbiguousTarget where none is named and there are several, and PodNotRunning.
    """
    name = _chosen(pod, container)
    if pod.metadata.deletion_timestamp:
        raise _not_running(pod, name, "the pod is being deleted")
    if not pod.spec.node_name:
        raise _not_running(pod, name, "the pod is on no node yet")
    status = pod.status.of(name)
    if status is None or status.state.running is None:
        raise _not_running(pod, name, _why(status) or f"the pod is {pod.status.phase}")
    return RunningContainer(
        namespace=pod.metadata.namespace,
        pod=pod.metadata.name,
        container=name,
        pod_uid=pod.metadata.uid,
        container_id=status.container_id.rpartition("//")[2],
        image=status.image,
        node=pod.spec.node_name,
        address=pod.status.host_ip,
    )


def _chosen(pod: Pod, container: str | None) -> str:
    names = [each.name for each in pod.spec.containers]
    if container in pod.spec.every:
        return container
    if container is not None:
        raise NoSuchPod(
            f"pod {pod} has no container {container}",
            details=f"it has {', '.join(pod.spec.every)}",
            remedy=f"name one of them: {pod}/{names[0]}",
        )
    if len(names) > 1:
        raise AmbiguousTarget(
            f"pod {pod} has several containers",
            details=", ".join(names),
            remedy=f"name one: {pod}/{names[0]}",
        )
    return names[0]


def _why(status: ContainerStatus | None) -> str:
    """What keeps a container from running, in the cluster's words."""
    if status is None:
        return ""
    if waiting := status.state.waiting:
        return ": ".join(filter(None, (f"it waits: {waiting.reason}", waiting.message)))
    if ended := status.state.terminated:
        return f"it ended with status {ended.exit_code}: {ended.reason or 'no reason given'}"
    return ""


def _not_running(pod: Pod, container: str, why: str) -> PodNotRunning:
    names = pod.metadata
    return PodNotRunning(
        f"container {container} of pod {pod} does not run",
        details=why,
        remedy=f"see what it waits for: kubectl -n {names.namespace} describe pod {names.name}",
    )
