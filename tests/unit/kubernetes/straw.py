"""A cluster of straw: a stand-in for its API, and in each pod an engine that records what it is told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cria.kubernetes.kubelet.checkpoint import CheckpointOptions, checkpoint
from cria.kubernetes.kubelet.cluster import Cluster, KubeletAccess
from cria.kubernetes.node import in_pod
from cria.kubernetes.node.criu_action import Failed
from tests.kubernetes.standin import Ran, StandIn, pod

AT_NODE = "/var/lib/kubelet/checkpoints/checkpoint-{}_default-{}-2026-01-01T00:00:00Z.tar"


class StrawEngine:
    """As what runs in a container sees an engine; `fail` names a command that does not work."""

    def __init__(self, fail: str = "") -> None:
        self.paused = False
        self.fail = fail
        self.told: list[tuple[str, dict[str, Any]]] = []

    def ask(self, command: str, seconds: float, **words: Any) -> dict[str, Any]:
        self.told.append((command, words))
        if command == self.fail:
            raise Failed(f"{command}: rank 1 did not come")
        was, self.paused = self.paused, command != "resume"
        answers = {"quiesce": {"workers": 2, "groups": 6, "dropped_bytes": 4096}, "renew": {}}
        known = {"resumed": was, "lease_seconds": words.get("lease")}
        return answers.get(command, {}) | known

    @property
    def commands(self) -> list[str]:
        return [command for command, _ in self.told]


class Straw:
    """The stand-in, an engine for each pod, and what each looked like when its node was asked."""

    def __init__(self, standin: StandIn, kubeconfig: Path, ca: Path, cluster: Cluster) -> None:
        self.standin, self.kubeconfig, self.ca = standin, kubeconfig, ca
        self._cluster = cluster
        self.engines: dict[str, StrawEngine] = {}
        self.paused_then: dict[str, bool] = {}
        self.archive: str | None = None
        self.lock = threading.Lock()
        standin.checkpoint = self._checkpoint
        standin.run = self._run

    def add(self, name: str, *containers: str, **changes: Any) -> StrawEngine:
        self.standin.add(pod(name, *containers, **changes))
        self.engines[name] = StrawEngine()
        return self.engines[name]

    def cluster(self, **options: Any) -> Cluster:
        return Cluster(kubeconfig=self.kubeconfig, **options) if options else self._cluster

    def kubelets(self, **options: Any) -> Cluster:
        return self.cluster(kubelets=KubeletAccess(url=self.standin.url, **options))

    def take(self, place: str = "default/p", cluster: Cluster | None = None, **options: Any) -> Any:
        return checkpoint(
            place, cluster=cluster or self.cluster(), options=CheckpointOptions(**options)
        )

    @property
    def posts(self) -> list[str]:
        return [asked for asked in self.standin.asked if asked.startswith("POST")]

    def _checkpoint(self, name: str, container: str, seconds: int) -> str:
        self.paused_then[name] = self.engines[name].paused
        return self.archive or AT_NODE.format(name, container)

    def _run(self, name: str, container: str, command: Sequence[str]) -> Ran:
        with self.lock:
            engine: Any = self.engines[name]
            return 0, in_pod.answer(command[-1], lambda: [engine]), ""
