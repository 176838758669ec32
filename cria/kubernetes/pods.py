"""The few words of the API server on a pod that cria reads. Source: the Kubernetes API, core/v1."""

from __future__ import annotations

import msgspec


class _Said(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of what the API server says, with what is not read left out."""


class Metadata(_Said, frozen=True):
    name: str
    namespace: str = ""
    uid: str = ""
    deletion_timestamp: str | None = None


class Named(_Said, frozen=True):
    name: str


class Spec(_Said, frozen=True):
    containers: tuple[Named, ...]
    init_containers: tuple[Named, ...] = ()
    ephemeral_containers: tuple[Named, ...] = ()
    node_name: str = ""

    @property
    def every(self) -> tuple[str, ...]:
        parts = (self.containers, self.init_containers, self.ephemeral_containers)
        return tuple(each.name for part in parts for each in part)


class Running(_Said, frozen=True):
    started_at: str | None = None


class Waiting(_Said, frozen=True):
    reason: str | None = None
    message: str | None = None


class Terminated(_Said, frozen=True):
    exit_code: int
    reason: str | None = None


class State(_Said, frozen=True):
    running: Running | None = None
    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Said, frozen=True):
    name: str
    image: str = ""
    container_id: str = msgspec.field(name="containerID", default="")
    state: State = State()


class Status(_Said, frozen=True):
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


class Pod(_Said, frozen=True):
    metadata: Metadata
    spec: Spec
    status: Status = Status()

    def __str__(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"


class ListMeta(_Said, frozen=True):
    continues: str | None = msgspec.field(name="continue", default=None)


class PodList(_Said, frozen=True):
    """A page of a list; `metadata.continues` is what to ask the next one with."""

    items: tuple[Pod, ...]
    metadata: ListMeta = ListMeta()
