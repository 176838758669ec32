"""A fake cluster: an API server that answers in this process, and in each pod an agent that records its commands."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cria.engine.control.client import ControlClient, ControlFailed
from cria.kubernetes.kubelet.checkpoint import CheckpointOptions, ContainerCheckpoint, checkpoint
from cria.kubernetes.kubelet.cluster import Cluster, KubeletAccess
from cria.kubernetes.node import in_pod
from tests.kubernetes.fake_api_server import ExecResult, FakeApiServer, pod

ARCHIVE_ON_NODE = "/var/lib/kubelet/checkpoints/checkpoint-{}_default-{}-2026-01-01T00:00:00Z.tar"


class FakeAgent(ControlClient):
    """A client whose engine exists only here. `fail` names a command that does not work."""

    def __init__(self) -> None:
        super().__init__(1, "/tmp/cria-0.sock")
        self.paused = False
        self.fail = ""
        self.errors: dict[str, str] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, command: str, *, seconds: float, **arguments: Any) -> dict[str, Any]:
        self.calls.append((command, arguments))
        if command == self.fail:
            raise ControlFailed(f"the engine could not {command}", "rank 1 did not come")
        if command in self.errors:
            raise ControlFailed(f"the engine could not {command}", self.errors[command])
        was_paused, self.paused = self.paused, command != "resume"
        answer = {"resumed": was_paused, "lease_seconds": arguments.get("lease")}
        if command == "quiesce":
            answer |= {"workers": 2, "groups": 6, "dropped_bytes": 4096}
        return answer

    @property
    def commands(self) -> list[str]:
        return [command for command, _ in self.calls]


class FakeCluster:
    """The fake API server, the agent of each pod, and whether that was paused when its node was asked."""

    def __init__(self, api: FakeApiServer, kubeconfig: Path, ca: Path, cluster: Cluster) -> None:
        self.api, self.kubeconfig, self.ca = api, kubeconfig, ca
        self._cluster = cluster
        self.agents: dict[str, FakeAgent] = {}
        self.paused_at_dump: dict[str, bool] = {}
        self.archive: str | None = None
        self.lock = threading.Lock()
        api.checkpoint = self._checkpoint
        api.run = self._run

    def add(self, name: str, *containers: str, **changes: Any) -> FakeAgent:
        """Add a running pod and return the agent in it."""
        self.api.add(pod(name, *containers, **changes))
        self.agents[name] = FakeAgent()
        return self.agents[name]

    def connect(self, **options: Any) -> Cluster:
        return Cluster(kubeconfig=self.kubeconfig, **options) if options else self._cluster

    def connect_kubelets(self, **options: Any) -> Cluster:
        return self.connect(kubelets=KubeletAccess(url=self.api.url, **options))

    def checkpoint(
        self, container: str = "default/p", cluster: Cluster | None = None, **options: Any
    ) -> ContainerCheckpoint:
        return checkpoint(
            container, cluster=cluster or self.connect(), options=CheckpointOptions(**options)
        )

    @property
    def posts(self) -> list[str]:
        return [request for request in self.api.requests if request.startswith("POST")]

    def _checkpoint(self, name: str, container: str, seconds: int) -> str:
        self.paused_at_dump[name] = self.agents[name].paused
        return self.archive or ARCHIVE_ON_NODE.format(name, container)

    def _run(self, name: str, container: str, command: Sequence[str]) -> ExecResult:
        with self.lock:
            return 0, in_pod.answer(command[-1], lambda: [self.agents[name]]), ""
