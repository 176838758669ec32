"""What an answer of the API server or of a kubelet means, and what mends it."""

from __future__ import annotations

import json
import re
from typing import Literal

import msgspec

from cria.errors import (
    CheckpointApiMissing,
    CheckpointTimedOut,
    ClusterForbids,
    ClusterUnreachable,
    CriaError,
    DumpFailed,
    NoSuchPod,
)
from cria.kubernetes.kubelet.pods import RunningContainer

Server = Literal["API server", "kubelet"]

MAX_MESSAGE_CHARS = 2000

_LOG = re.compile(r"(?:log file:|path=) ?(/[^\s)]+\.log)")  # runc, before 1.3 and since
_UNIMPLEMENTED = ("Unimplemented", "unknown method", "not implemented", "not supported")
_NO_CRIU = (
    "CRIU binary not found",
    "criu binary not found",
    "CRIU support is not",
    "not available",
)
_LATE = (
    "DeadlineExceeded",
    "context deadline exceeded",
    "timed out",
    "context canceled",
    "RST_STREAM with error code: CANCEL",  # the runtime looked at the clock before the kubelet did
)
_BROKEN_OFF = ("EOF", "connection reset", "broken pipe", "stream error", "server disconnected")
_NODE_GONE = ("error trying to reach service", "dial tcp", "no route to host", "TLS handshake")


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is not 200, to a request for checkpointing what was `found`."""

    status: int
    text: str
    via: Server
    found: RunningContainer

    @property
    def said(self) -> str:
        return status_message(self.text) or f"HTTP status {self.status} without a word"


def status_message(text: str) -> str:
    """The words for a person: the API server wraps them in a Status, kubelets do not."""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    message = told.get("message") if isinstance(told, dict) else None
    return str(message or text.strip())[:MAX_MESSAGE_CHARS]


def checkpoint_error(answer: ErrorResponse) -> CriaError:
    """The error that a checkpoint ended with."""
    said, status = answer.said, answer.status
    if status == 401:
        return unauthorized(f"the {answer.via}", said, kubelet=answer.via == "kubelet")
    if status == 403:
        return _forbidden(answer)
    if status == 404:
        return _not_found(answer)
    return _not_done(answer)


def _not_done(answer: ErrorResponse) -> CriaError:
    if answer.status == 405 or _has(answer.said, _UNIMPLEMENTED):
        return _unable(answer, "its container runtime cannot checkpoint: containerd since 2.0 can")
    if answer.status == 504 or _has(answer.said, _LATE):
        return timed_out(answer.found, answer.said)
    if _has(answer.said, _BROKEN_OFF):
        return connection_lost(answer.found, answer.said)
    if answer.status in (502, 503) or _has(answer.said, _NODE_GONE):
        return ClusterUnreachable(
            f"the kubelet of node {answer.found.node} cannot be reached",
            details=answer.said,
            remedy=f"see whether the node is ready: kubectl describe node {answer.found.node}",
        )
    return _failed(answer)


def read_error(status: int, text: str, what: str, right: str) -> CriaError:
    """The error when the API server does not show `what`; `right` is what it takes to see it."""
    said = status_message(text) or f"HTTP status {status} without a word"
    if status == 401:
        return unauthorized("the API server", said, kubelet=False)
    if status == 403:
        return forbidden(f"see {what}", said, right)
    if status == 404:
        return NoSuchPod(
            f"there is no {what}", details=said, remedy="kubectl get pods --all-namespaces"
        )
    return ClusterUnreachable(f"the API server does not show {what}", details=said)


def timed_out(found: RunningContainer, said: str) -> CheckpointTimedOut:
    """What is said when the time is over, whoever kept it.

    containerd (seen with 2.1.9) freezes a container for its dump, and when the call is broken off it
    breaks off as well and leaves it frozen.
    """
    return CheckpointTimedOut(
        f"node {found.node} had not checkpointed {found} in time",
        details=f"{said}\ncontainerd then leaves a container frozen, and its engine does not go on",
        remedy=f"on that node: {resume_command(found)}; then give it longer: --timeout SECONDS",
    )


def connection_lost(found: RunningContainer, said: str) -> CheckpointTimedOut:
    """What is said when the connection was lost after the node was asked: it may be dumping, or have left off."""
    return CheckpointTimedOut(
        f"the call to checkpoint {found} on node {found.node} was broken off",
        details=f"{said}\ncontainerd then leaves a container frozen, and its engine does not go on",
        remedy=f"on that node: {resume_command(found)}; then try again",
    )


def resume_command(found: RunningContainer) -> str:
    """The command that lets a frozen container of containerd's run on, on its node."""
    return f"ctr --namespace k8s.io task resume {found.container_id}"


def unauthorized(whom: str, said: str, *, kubelet: bool) -> ClusterForbids:
    """Who asks is unknown: the credentials are not those of this cluster, or a kubelet knows no tokens."""
    cure = "log in again, or name other credentials: --kubeconfig FILE --context NAME"
    if kubelet:
        cure = "let the kubelet accept tokens (authentication.webhook.enabled), or go through the API server"
    return ClusterForbids(f"{whom} does not know who asks", details=said, remedy=cure)


def forbidden(what: str, said: str, right: str) -> ClusterForbids:
    """`right` is the verb and the resource that are needed, as in a Role."""
    return ClusterForbids(
        f"not allowed: {what}",
        details=f"{said}\nneeded is the right to {right}",
    )


def _forbidden(answer: ErrorResponse) -> ClusterForbids:
    right = "create nodes/checkpoint"
    # A kubelet answers for whoever asks it, also when that is the API server in our name.
    if answer.via == "API server" and "subresource=checkpoint" not in answer.said:
        right = "create nodes/proxy"
    elif answer.via == "API server":
        right += ", for the API server's own user"
    return forbidden(f"checkpoint {answer.found} on node {answer.found.node}", answer.said, right)


def _not_found(answer: ErrorResponse) -> CriaError:
    said = answer.said
    if "does not exist" in said or "not found" in said.replace("page not found", ""):
        return NoSuchPod(
            f"the kubelet of node {answer.found.node} does not know {answer.found}",
            details=said,
            remedy="see where it is now: kubectl get pods --all-namespaces -o wide",
        )
    return _unable(
        answer, "its kubelet offers no checkpoints: older than 1.30, or ContainerCheckpoint is off"
    )


def _unable(answer: ErrorResponse, why: str) -> CheckpointApiMissing:
    return CheckpointApiMissing(
        f"node {answer.found.node} cannot checkpoint containers",
        details=f"{why}\n{answer.said}",
        remedy="in the kubelet's configuration: featureGates: {ContainerCheckpoint: true};"
        " and set the node up: cria kubernetes node install",
    )


def _failed(answer: ErrorResponse) -> DumpFailed:
    log = _LOG.search(answer.said)
    no_criu = _has(answer.said, _NO_CRIU)
    cure = "set the node up: cria kubernetes node install" if no_criu else None
    return DumpFailed(
        f"node {answer.found.node} could not checkpoint {answer.found}",
        details=answer.said,
        remedy=cure or f"read CRIU's log on node {answer.found.node}",
        log=log[1] if log else None,
    )


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)
