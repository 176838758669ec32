"""Errors of the cluster: exit statuses 60 to 69."""

from __future__ import annotations

from cria.errors.base import CriaError


class KubernetesMissing(CriaError):
    """The library that speaks to a cluster is not installed, or was given no credentials that it knows."""

    code = "kubernetes-missing"
    exit_status = 60
    default_remedy = "pip install 'cria[kubernetes]'"
    default_docs = "docs/how-to/kubernetes.md"


class ClusterUnreachable(CriaError):
    """The API server, or the kubelet of a node, does not answer or is not who it should be."""

    code = "cluster-unreachable"
    exit_status = 61
    default_docs = "docs/how-to/kubernetes.md"


class ClusterForbids(CriaError):
    """The cluster does not know who asks, or does not allow what is asked."""

    code = "cluster-forbids"
    exit_status = 62
    default_remedy = "grant the rights that are needed: kubectl apply -f hooks/kubernetes/rbac.yaml"
    default_docs = "docs/how-to/kubernetes.md"


class NoSuchPod(CriaError):
    """There is no such pod, or it has no such container."""

    code = "no-such-pod"
    exit_status = 63


class PodNotRunning(CriaError):
    """The container that should be checkpointed does not run."""

    code = "pod-not-running"
    exit_status = 64


class CheckpointApiMissing(CriaError):
    """The node cannot checkpoint containers: its kubelet or its runtime does not do it."""

    code = "checkpoint-api-missing"
    exit_status = 65
    default_docs = "docs/how-to/kubernetes.md"


class CheckpointTimedOut(CriaError):
    """The node had not checkpointed the container in time; its engine was told to go on."""

    code = "checkpoint-timed-out"
    exit_status = 66
    default_remedy = "give it longer: --timeout SECONDS"


class SomeNotCheckpointed(CriaError):
    """Of several containers some were not checkpointed; the report says which, and why."""

    code = "some-not-checkpointed"
    exit_status = 67
