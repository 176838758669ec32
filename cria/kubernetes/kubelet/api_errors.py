"""Turn responses of the API server and of kubelets into cria's errors, with the command that helps."""

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

_CRIU_LOG = re.compile(r"(?:log file:|path=) ?(/[^\s)]+\.log)")  # runc, before 1.3 and since
_UNIMPLEMENTED = ("Unimplemented", "unknown method", "not implemented", "not supported")
_NO_CRIU = (
    "CRIU binary not found",
    "criu binary not found",
    "CRIU support is not",
    "not available",
)
_TIMED_OUT = (
    "DeadlineExceeded",
    "context deadline exceeded",
    "timed out",
    "context canceled",
    "RST_STREAM with error code: CANCEL",  # the runtime's deadline passed before the kubelet's
)
_CONNECTION_LOST = (
    "EOF",
    "connection reset",
    "broken pipe",
    "stream error",
    "server disconnected",
)
_NODE_UNREACHABLE = (
    "error trying to reach service",
    "dial tcp",
    "no route to host",
    "TLS handshake",
)
_LEFT_FROZEN = "containerd then leaves the container frozen, and its engine does not run"


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A response other than 200 of `server` to the request to checkpoint `container`."""

    status: int
    text: str
    server: Server
    container: RunningContainer

    @property
    def message(self) -> str:
        return error_message(self.status, self.text)


def error_message(status: int, text: str) -> str:
    """Return the message in the body of a response: the API server puts it into a Status, kubelets do not."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    message = body.get("message") if isinstance(body, dict) else None
    return (
        str(message or text.strip())[:MAX_MESSAGE_CHARS] or f"HTTP status {status} without a body"
    )


# A request for a checkpoint --------------------------------------------------------------------


def checkpoint_error(response: ErrorResponse) -> CriaError:
    """Return the error for a checkpoint that a kubelet or the API server has refused, or that failed."""
    if response.status == 401:
        server, message = response.server, response.message
        return unauthorized(f"the {server}", message, is_kubelet=server == "kubelet")
    if response.status == 403:
        return _checkpoint_forbidden(response)
    if response.status == 404:
        return _not_found(response)
    return _not_done(response)


def timed_out(container: RunningContainer, message: str) -> CheckpointTimedOut:
    """Return the error for a checkpoint whose time has passed, whether cria, the kubelet or the runtime kept it.

    containerd (seen with 2.1.9) freezes a container for its dump, and leaves it frozen when the call is cancelled.
    """
    return CheckpointTimedOut(
        f"node {container.node} did not checkpoint {container} in time",
        details=f"{message}\n{_LEFT_FROZEN}",
        remedy=f"on that node: {resume_command(container)}; then allow more time: --timeout SECONDS",
    )


def connection_lost(container: RunningContainer, message: str) -> CheckpointTimedOut:
    """Return the error for a connection that was lost after the request was sent: the node may still dump, or not."""
    return CheckpointTimedOut(
        f"the connection was lost while node {container.node} checkpointed {container}",
        details=f"{message}\n{_LEFT_FROZEN}",
        remedy=f"on that node: {resume_command(container)}; then try again",
    )


def resume_command(container: RunningContainer) -> str:
    """Return the command that thaws a frozen container of containerd, on its node."""
    return f"ctr --namespace k8s.io task resume {container.container_id}"


def _not_done(response: ErrorResponse) -> CriaError:
    message, container = response.message, response.container
    if response.status == 405 or _contains(message, _UNIMPLEMENTED):
        return _api_missing(
            response, "its container runtime cannot checkpoint: containerd since 2.0 can"
        )
    if response.status == 504 or _contains(message, _TIMED_OUT):
        return timed_out(container, message)
    if _contains(message, _CONNECTION_LOST):
        return connection_lost(container, message)
    if response.status in (502, 503) or _contains(message, _NODE_UNREACHABLE):
        return ClusterUnreachable(
            f"the kubelet of node {container.node} cannot be reached",
            details=message,
            remedy=f"see whether the node is ready: kubectl describe node {container.node}",
        )
    return _dump_failed(response)


def _checkpoint_forbidden(response: ErrorResponse) -> ClusterForbids:
    container, message = response.container, response.message
    right = "create nodes/checkpoint"
    # A kubelet asks who may call it also when the API server calls it for the user.
    if response.server == "API server" and "subresource=checkpoint" not in message:
        right = "create nodes/proxy"
    elif response.server == "API server":
        right += ", for the API server's own user"
    return forbidden(f"checkpoint {container} on node {container.node}", message, right)


def _not_found(response: ErrorResponse) -> CriaError:
    message, container = response.message, response.container
    if "does not exist" in message or "not found" in message.replace("page not found", ""):
        return NoSuchPod(
            f"the kubelet of node {container.node} does not know {container}",
            details=message,
            remedy="see where it is now: kubectl get pods --all-namespaces -o wide",
        )
    return _api_missing(
        response,
        "its kubelet has no checkpoint API: older than 1.30, or ContainerCheckpoint is off",
    )


def _api_missing(response: ErrorResponse, why: str) -> CheckpointApiMissing:
    return CheckpointApiMissing(
        f"node {response.container.node} cannot checkpoint containers",
        details=f"{why}\n{response.message}",
        remedy="in the kubelet's configuration: featureGates: {ContainerCheckpoint: true};"
        " and set the node up: cria kubernetes node install",
    )


def _dump_failed(response: ErrorResponse) -> DumpFailed:
    message, container = response.message, response.container
    log = _CRIU_LOG.search(message)
    has_no_criu = _contains(message, _NO_CRIU)
    return DumpFailed(
        f"node {container.node} could not checkpoint {container}",
        details=message,
        remedy="set the node up: cria kubernetes node install"
        if has_no_criu
        else f"read CRIU's log on node {container.node}",
        log=log[1] if log else None,
    )


# Any request -----------------------------------------------------------------------------------


def read_error(status: int, text: str, resource: str, right: str) -> CriaError:
    """Return the error for a resource that the API server does not return; `right` is what reading it takes."""
    message = error_message(status, text)
    if status == 401:
        return unauthorized("the API server", message, is_kubelet=False)
    if status == 403:
        return forbidden(f"read {resource}", message, right)
    if status == 404:
        return NoSuchPod(
            f"there is no {resource}", details=message, remedy="kubectl get pods --all-namespaces"
        )
    return ClusterUnreachable(f"the API server does not return {resource}", details=message)


def unauthorized(server: str, message: str, *, is_kubelet: bool) -> ClusterForbids:
    """Return the error for credentials that are of another cluster, or a token at a kubelet that takes none."""
    remedy = "log in again, or name other credentials: --kubeconfig FILE --context NAME"
    if is_kubelet:
        remedy = "let the kubelet accept tokens (authentication.webhook.enabled), or go through the API server"
    return ClusterForbids(
        f"{server} does not accept the credentials", details=message, remedy=remedy
    )


def forbidden(action: str, message: str, right: str) -> ClusterForbids:
    """Return the error for an action without a right; `right` is a verb and a resource, as in a Role."""
    return ClusterForbids(
        f"not allowed: {action}", details=f"{message}\nit takes the right to {right}"
    )


def _contains(text: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in text for phrase in phrases)
