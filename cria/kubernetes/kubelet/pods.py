"""Read pods as the API server describes them, and find a running container in one.

cria reads a few fields with structs of its own: mypy cannot follow lightkube's models, and a field that a newer
cluster adds or leaves out is none of cria's business. Names are those of the Kubernetes API, core/v1.
"""

from __future__ import annotations

import re

import msgspec

from cria.errors import AmbiguousTarget, NoSuchPod, PodNotRunning, UsageError


class _ApiObject(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of an object of the API; fields that are not named here are ignored."""


class ObjectMeta(_ApiObject, frozen=True):
    name: str
    namespace: str = ""
    uid: str = ""
    deletion_timestamp: str | None = None


class Container(_ApiObject, frozen=True):
    name: str


class PodSpec(_ApiObject, frozen=True):
    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    ephemeral_containers: tuple[Container, ...] = ()
    node_name: str = ""

    @property
    def container_names(self) -> tuple[str, ...]:
        """The names of containers of all kinds."""
        kinds = (self.containers, self.init_containers, self.ephemeral_containers)
        return tuple(container.name for containers in kinds for container in containers)


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
        """Return the status of a container of any kind; None before the kubelet has reported one."""
        statuses = (
            *self.container_statuses,
            *self.init_container_statuses,
            *self.ephemeral_container_statuses,
        )
        return next((status for status in statuses if status.name == container), None)


class Pod(_ApiObject, frozen=True):
    metadata: ObjectMeta
    spec: PodSpec
    status: PodStatus = PodStatus()

    def __str__(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"


class ListMeta(_ApiObject, frozen=True):
    continue_token: str | None = msgspec.field(name="continue", default=None)


class PodList(_ApiObject, frozen=True):
    """One page of a list. `metadata.continue_token` asks for the next page, where there is one."""

    items: tuple[Pod, ...]
    metadata: ListMeta = ListMeta()


# DNS labels and subdomains, as Kubernetes wants names to be; they are safe as a part of a URL.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
)


class ContainerRef(msgspec.Struct, frozen=True, kw_only=True):
    """The names of a container. `container` is None for the only one of its pod."""

    namespace: str
    pod: str
    container: str | None = None

    @classmethod
    def parse(cls, text: str) -> ContainerRef:
        """Read NAMESPACE/POD or NAMESPACE/POD/CONTAINER. Raises UsageError."""
        names = text.split("/")
        patterns = (_LABEL, _SUBDOMAIN, _LABEL)
        if len(names) not in (2, 3) or not all(map(re.Pattern.fullmatch, patterns, names)):
            raise UsageError(
                f"{text!r} does not name a container",
                details="write NAMESPACE/POD/CONTAINER, or NAMESPACE/POD where the pod has one container",
                remedy="list the pods: kubectl get pods --all-namespaces",
            )
        return cls(namespace=names[0], pod=names[1], container=names[2] if names[2:] else None)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.namespace, self.pod, self.container)))


class RunningContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container that runs. `node` is the name of its node, `address` the address of the node's kubelet."""

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


def find_running(pod: Pod, container: str | None = None) -> RunningContainer:
    """Return a container of a pod, the only one where `container` is None.

    Raises NoSuchPod, AmbiguousTarget where none is named and the pod has several, and PodNotRunning.
    """
    name = _container_name(pod, container)
    if pod.metadata.deletion_timestamp:
        raise _not_running(pod, name, "the pod is being deleted")
    if not pod.spec.node_name:
        raise _not_running(pod, name, "the pod is not scheduled to a node yet")
    status = pod.status.of(name)
    if status is None or status.state.running is None:
        raise _not_running(pod, name, _why_not_running(status) or f"the pod is {pod.status.phase}")
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


def _container_name(pod: Pod, container: str | None) -> str:
    names = [container.name for container in pod.spec.containers]
    if container in pod.spec.container_names:
        return container
    if container is not None:
        raise NoSuchPod(
            f"pod {pod} has no container {container}",
            details=f"it has {', '.join(pod.spec.container_names)}",
            remedy=f"name one of them: {pod}/{names[0]}",
        )
    if len(names) > 1:
        raise AmbiguousTarget(
            f"pod {pod} has several containers",
            details=", ".join(names),
            remedy=f"name one of them: {pod}/{names[0]}",
        )
    return names[0]


def _why_not_running(status: ContainerStatus | None) -> str:
    if status is None:
        return ""
    if waiting := status.state.waiting:
        return ": ".join(filter(None, (f"it waits: {waiting.reason}", waiting.message)))
    if terminated := status.state.terminated:
        reason = terminated.reason or "no reason given"
        return f"it ended with status {terminated.exit_code}: {reason}"
    return ""


def _not_running(pod: Pod, container: str, why: str) -> PodNotRunning:
    metadata = pod.metadata
    return PodNotRunning(
        f"container {container} of pod {pod} does not run",
        details=why,
        remedy=f"see what it waits for: kubectl -n {metadata.namespace} describe pod {metadata.name}",
    )
