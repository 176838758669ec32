"""Ask the API server and the kubelets: which pods there are, to run something in one, to checkpoint it."""

from __future__ import annotations

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
    from collections.abc import Sequence

    import httpx2

GRACE_SECONDS = 30.0  # the kubelet keeps the deadline itself, and says what it waited for
KUBELET_PORT = 10250
PODS_AT_ONCE = 500
_SERVER = "the API server"
Kind = TypeVar("Kind", Pod, PodList)


class KubeletAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How kubelets are asked: each at its node's address, or all at `url`; `ca` signed their certificates."""

    url: str | None = None
    ca: Path | None = None

    def url_of(self, found: RunningContainer) -> str:
        if self.url and not self.url.startswith("https://"):
            raise UsageError(
                f"{self.url} is not asked: who we are would travel there in clear",
                remedy="name it with https://, and its certificate with --kubelet-ca FILE",
            )
        if self.url:
            return self.url
        host = f"[{found.address}]" if ":" in found.address else found.address
        return f"https://{host}:{KUBELET_PORT}"


class _Checkpointed(msgspec.Struct, frozen=True):
    """Source: the kubelet's checkpoint API."""

    items: tuple[str, ...]


class Cluster:
    """A cluster and who we are there; with `kubelets` checkpoints are asked of these, else of the API server."""

    def __init__(
        self,
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        kubelets: KubeletAccess | None = None,
        listener: Listener | None = None,
    ) -> None:
        """Raises KubernetesMissing, UsageError. Nothing is asked yet."""
        self._config = credentials.load_config(kubeconfig, context, listener)
        self._kubelets = kubelets
        if kubelets is not None:
            self._tls = credentials.kubelet_tls(self._config, kubelets.ca)
        self._client, self._http = credentials.api_clients(self._config)

    @property
    def via(self) -> Server:
        return "API server" if self._kubelets is None else "kubelet"

    def pod(self, place: ContainerRef) -> Pod:
        """Raises NoSuchPod, ClusterForbids, ClusterUnreachable."""
        path = f"/api/v1/namespaces/{place.namespace}/pods/{place.pod}"
        return self._get(path, Pod, f"pod {place.namespace}/{place.pod}", "get pods")

    def pods(self, selector: str, *, namespace: str | None, node: str | None) -> tuple[Pod, ...]:
        """Those that fit a label selector, as kubectl's -l; in every namespace where none is named."""
        path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        words = {"labelSelector": selector, "limit": str(PODS_AT_ONCE)}
        if node:
            words["fieldSelector"] = f"spec.nodeName={node}"
        pods: list[Pod] = []
        while True:
            page = self._get(path, PodList, f"pods with {selector}", "list pods", words)
            pods += page.items
            if not page.metadata.continues:
                return tuple(pods)
            words["continue"] = page.metadata.continues

    def run_in(self, found: RunningContainer, command: Sequence[str], *, seconds: float) -> str:
        """What a command says when it is run in a container. Raises QuiesceFailed when it fails."""
        from httpx2.websockets import WebSocketUpgradeError
        from lightkube import ApiError

        try:
            with credentials.connection_errors(_SERVER):
                done = self._client.exec(
                    found.pod,
                    namespace=found.namespace,
                    container=found.container,
                    command=command,
                    stdout=True,
                    stderr=True,
                    timeout=seconds,
                )
        except WebSocketUpgradeError as error:
            raise _no_exec(found, error.response.status_code) from error
        except ApiError as error:
            raise _not_run(found, str(error)) from error
        if done.exit_code:
            raise _not_run(
                found, f"{command[0]} ended with {done.exit_code}: {str(done.stderr)[-2000:]}"
            )
        return str(done.stdout)

    def checkpoint(self, found: RunningContainer, *, seconds: int) -> str:
        """Have the node checkpoint a container, which takes a while; returns the archive's path there.

        Raises CheckpointTimedOut after `seconds`, and what cria.kubernetes.kubelet.api_errors makes of an answer.
        """
        import httpx2

        http, path, whom = self._http, f"/api/v1/nodes/{found.node}/proxy", _SERVER
        if self._kubelets is not None:
            url = self._kubelets.url_of(found)
            http = credentials.kubelet_client(self._config, url, self._tls)
            path, whom = "", f"the kubelet of node {found.node}"
        path += f"/checkpoint/{found.namespace}/{found.pod}/{found.container}"
        patience = httpx2.Timeout(credentials.ANSWER_SECONDS, read=seconds + GRACE_SECONDS)
        try:
            with credentials.connection_errors(whom):
                response = http.post(path, params={"timeout": seconds}, timeout=patience)
        except ClusterUnreachable as error:
            if isinstance(error.__cause__, httpx2.ReadTimeout):
                raise api_errors.timed_out(found, error.details or "") from error
            if _was_asked(error.__cause__):
                raise api_errors.connection_lost(found, error.details or "") from error
            raise
        return self._archive_in(response, found)

    def _archive_in(self, response: httpx2.Response, found: RunningContainer) -> str:
        if response.status_code != 200:
            raise api_errors.checkpoint_error(self._answer(response, found))
        try:
            (path,) = msgspec.json.decode(response.content, type=_Checkpointed).items
        except (msgspec.DecodeError, ValueError) as error:
            raise CheckpointApiMissing(
                f"node {found.node} did not say where its archive of {found} is",
                details=response.text[:500],
                remedy="see whether it is a kubelet that answers at this address",
            ) from error
        return path

    def _answer(self, response: httpx2.Response, found: RunningContainer) -> ErrorResponse:
        return ErrorResponse(
            status=response.status_code,
            text=response.text,
            via=self.via,
            found=found,
        )

    def _get(
        self,
        path: str,
        kind: type[Kind],
        what: str,
        right: str,
        words: dict[str, str] | None = None,
    ) -> Kind:
        with credentials.connection_errors(_SERVER):
            response = self._http.get(path, params=words)
        if response.status_code != 200:
            raise api_errors.read_error(response.status_code, response.text, what, right)
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.DecodeError as error:
            said = f"{response.url} answers with something else: {error}"
            raise ClusterUnreachable(f"{_SERVER} does not show {what}", details=said) from error


def _no_exec(found: RunningContainer, status: int) -> CriaError:
    """The API server did not let a command be run; why is not to be had."""
    if status in (401, 403):
        said = f"the API server answered {status} to exec"
        return api_errors.forbidden(f"run a command in {found}", said, "create and get pods/exec")
    if status == 404:
        return NoSuchPod(f"{found} is gone", remedy="kubectl get pods --all-namespaces")
    return PodNotRunning(
        f"no command can be run in {found}",
        details=f"the API server answered {status} to exec",
        remedy=f"see whether it runs: kubectl -n {found.namespace} describe pod {found.pod}",
    )


def _not_run(found: RunningContainer, why: str) -> QuiesceFailed:
    return QuiesceFailed(
        f"cria's commands cannot be run in {found}",
        details=why,
        remedy="name the container's Python: --python PATH; or --quiesce none",
    )


def _was_asked(error: BaseException | None) -> bool:
    """Whether a connection was lost when its node may have begun. All else happens before it is asked."""
    import httpx2

    lost = (httpx2.ReadError, httpx2.WriteError, httpx2.CloseError, httpx2.RemoteProtocolError)
    return isinstance(error, lost)
