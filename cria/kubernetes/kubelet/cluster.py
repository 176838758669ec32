"""Ask the API server for pods and to run commands in them, and kubelets to checkpoint their containers.

lightkube and httpx2 are imported by the functions that need them, as cria.kubernetes.kubelet.credentials explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cria.errors import (
    CheckpointApiMissing,
    ClusterUnreachable,
    CriaError,
    NoSuchPod,
    PodNotRunning,
    QuiesceFailed,
    UsageError,
)
from cria.events import Listener
from cria.kubernetes.kubelet import api_errors, credentials
from cria.kubernetes.kubelet.api_errors import ErrorResponse, Server
from cria.kubernetes.kubelet.pods import ContainerRef, Pod, PodList, RunningContainer

if TYPE_CHECKING:
    import httpx2

GRACE_SECONDS = 30.0  # the kubelet keeps the deadline itself, and says what it waited for
KUBELET_PORT = 10250
PAGE_PODS = 500
_API_SERVER = "the API server"
_ApiType = TypeVar("_ApiType", Pod, PodList)


class KubeletAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach kubelets: each at the address of its node, or all at `url`; `ca` has signed their certificates."""

    url: str | None = None
    ca: Path | None = None

    def url_of(self, container: RunningContainer) -> str:
        """Return the URL of the kubelet of a container's node. Raises UsageError for a URL without TLS."""
        if self.url and not self.url.startswith("https://"):
            raise UsageError(
                f"the kubelet's URL {self.url} would send the credentials in clear",
                remedy="name it with https://, and its certificate with --kubelet-ca FILE",
            )
        if self.url:
            return self.url
        host = f"[{container.address}]" if ":" in container.address else container.address
        return f"https://{host}:{KUBELET_PORT}"


class _CheckpointResponse(msgspec.Struct, frozen=True):
    """Source: the kubelet's checkpoint API."""

    items: tuple[str, ...]


class Cluster:
    """A cluster, with a user's credentials. With `kubelets` it asks these for checkpoints, else the API server."""

    def __init__(
        self,
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        kubelets: KubeletAccess | None = None,
        listener: Listener | None = None,
    ) -> None:
        """Load the credentials; nothing is asked yet. Raises KubernetesMissing, UsageError."""
        self._config = credentials.load_config(kubeconfig, context, listener)
        self._kubelets = kubelets
        if kubelets is not None:
            self._tls = credentials.kubelet_tls(self._config, kubelets.ca)
        self._client, self._http = credentials.api_clients(self._config)

    @property
    def server(self) -> Server:
        """The server that is asked for checkpoints."""
        return "API server" if self._kubelets is None else "kubelet"

    def get_pod(self, ref: ContainerRef) -> Pod:
        """Return the pod of a container. Raises NoSuchPod, ClusterForbids, ClusterUnreachable."""
        path = f"/api/v1/namespaces/{ref.namespace}/pods/{ref.pod}"
        return self._get(path, Pod, f"pod {ref.namespace}/{ref.pod}", "get pods")

    def list_pods(
        self, selector: str, *, namespace: str | None, node: str | None
    ) -> tuple[Pod, ...]:
        """Return the pods that match a label selector, as kubectl's -l; in all namespaces where none is named.

        Raises ClusterForbids, ClusterUnreachable.
        """
        path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        query = {"labelSelector": selector, "limit": str(PAGE_PODS)}
        if node:
            query["fieldSelector"] = f"spec.nodeName={node}"
        pods: list[Pod] = []
        while True:
            page = self._get(path, PodList, f"pods with {selector}", "list pods", query)
            pods += page.items
            if not page.metadata.continue_token:
                return tuple(pods)
            query["continue"] = page.metadata.continue_token

    def exec(self, container: RunningContainer, command: Sequence[str], *, seconds: float) -> str:
        """Run a command in a container and return its output.

        Raises QuiesceFailed where the command fails, ClusterForbids, ClusterUnreachable, NoSuchPod, PodNotRunning.
        """
        from httpx2.websockets import WebSocketUpgradeError
        from lightkube import ApiError

        try:
            with credentials.connection_errors(_API_SERVER):
                result = self._client.exec(
                    container.pod,
                    namespace=container.namespace,
                    container=container.container,
                    command=command,
                    stdout=True,
                    stderr=True,
                    timeout=seconds,
                )
        except WebSocketUpgradeError as error:
            raise _exec_refused(container, error.response.status_code) from error
        except ApiError as error:
            raise _command_failed(container, str(error)) from error
        if result.exit_code:
            why = f"{command[0]} ended with {result.exit_code}: {str(result.stderr)[-2000:]}"
            raise _command_failed(container, why)
        return str(result.stdout)

    def checkpoint(self, container: RunningContainer, *, seconds: int) -> str:
        """Let the node checkpoint a container, and wait for it. Returns the archive's path on the node.

        Raises CheckpointTimedOut after `seconds`, and the errors of cria.kubernetes.kubelet.api_errors.
        """
        import httpx2

        http, path, server = self._http, f"/api/v1/nodes/{container.node}/proxy", _API_SERVER
        if self._kubelets is not None:
            url = self._kubelets.url_of(container)
            http = credentials.kubelet_client(self._config, url, self._tls)
            path, server = "", f"the kubelet of node {container.node}"
        path += f"/checkpoint/{container.namespace}/{container.pod}/{container.container}"
        timeout = httpx2.Timeout(credentials.RESPONSE_SECONDS, read=seconds + GRACE_SECONDS)
        try:
            with credentials.connection_errors(server):
                response = http.post(path, params={"timeout": seconds}, timeout=timeout)
        except ClusterUnreachable as error:
            if isinstance(error.__cause__, httpx2.ReadTimeout):
                raise api_errors.timed_out(container, error.details or "") from error
            if _was_sent(error.__cause__):
                raise api_errors.connection_lost(container, error.details or "") from error
            raise
        return self._archive_path(response, container)

    def _archive_path(self, response: httpx2.Response, container: RunningContainer) -> str:
        if response.status_code != 200:
            raise api_errors.checkpoint_error(
                ErrorResponse(
                    status=response.status_code,
                    text=response.text,
                    server=self.server,
                    container=container,
                )
            )
        try:
            (path,) = msgspec.json.decode(response.content, type=_CheckpointResponse).items
        except (msgspec.DecodeError, ValueError) as error:
            raise CheckpointApiMissing(
                f"node {container.node} did not say where its archive of {container} is",
                details=response.text[:500],
                remedy="see whether a kubelet answers at this address",
            ) from error
        return path

    def _get(
        self,
        path: str,
        kind: type[_ApiType],
        resource: str,
        right: str,
        query: dict[str, str] | None = None,
    ) -> _ApiType:
        with credentials.connection_errors(_API_SERVER):
            response = self._http.get(path, params=query)
        if response.status_code != 200:
            raise api_errors.read_error(response.status_code, response.text, resource, right)
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.DecodeError as error:
            raise ClusterUnreachable(
                f"{_API_SERVER} does not return {resource}",
                details=f"{response.url} answers with something else: {error}",
            ) from error


def _exec_refused(container: RunningContainer, status: int) -> CriaError:
    """Return the error for an exec that was not upgraded to a websocket; the response's body cannot be read."""
    why = f"the API server answered {status} to exec"
    if status in (401, 403):
        return api_errors.forbidden(
            f"run a command in {container}", why, "create and get pods/exec"
        )
    if status == 404:
        return NoSuchPod(
            f"{container} does not exist any more", remedy="kubectl get pods --all-namespaces"
        )
    return PodNotRunning(
        f"no command can be run in {container}",
        details=why,
        remedy=f"see whether it runs: kubectl -n {container.namespace} describe pod {container.pod}",
    )


def _command_failed(container: RunningContainer, why: str) -> QuiesceFailed:
    return QuiesceFailed(
        f"cria's commands cannot be run in {container}",
        details=why,
        remedy="name the container's Python: --python PATH; or --quiesce none",
    )


def _was_sent(error: BaseException | None) -> bool:
    """Return whether a request may have reached its server before the connection was lost."""
    import httpx2

    return isinstance(
        error, (httpx2.ReadError, httpx2.WriteError, httpx2.CloseError, httpx2.RemoteProtocolError)
    )
