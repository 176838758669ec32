"""Load the credentials for a cluster, and connect to its API server and kubelets with them.

lightkube and httpx2 are an extra of cria's distribution and take 0.13 s to import, so that functions import them.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cria.errors import ClusterUnreachable, KubernetesMissing, UsageError
from cria.events import Listener, Warned, nobody

if TYPE_CHECKING:
    import httpx2
    from lightkube import Client
    from lightkube.config.kubeconfig import SingleConfig

RESPONSE_SECONDS = 30.0
_NOT_A_KUBECONFIG = (AttributeError, KeyError, TypeError)  # what lightkube raises for other YAML


def load_config(
    kubeconfig: Path | None = None, context: str | None = None, listener: Listener | None = None
) -> SingleConfig:
    """Load the credentials in `kubeconfig`; without one those of the pod we are in, $KUBECONFIG or ~/.kube/config.

    Raises KubernetesMissing where the extra is not installed, or there are none.
    """
    require_lightkube()
    import yaml  # type: ignore[import-untyped]
    from lightkube.config.kubeconfig import KubeConfig
    from lightkube.core.exceptions import ConfigError

    try:
        configs = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        config = configs.get(context)
    except (
        ConfigError,
        OSError,
        yaml.YAMLError,
        msgspec.MsgspecError,
        *_NOT_A_KUBECONFIG,
    ) as error:
        raise _no_credentials(error) from error
    if config is None:  # lightkube raises instead, but does not promise to
        raise _no_credentials(ConfigError("no context"))
    if config.cluster.insecure:
        message = (
            f"{kubeconfig or 'the kubeconfig'} turns off the check of the API server's certificate"
        )
        remedy = "remove insecure-skip-tls-verify from it"
        (listener or nobody)(Warned(message=message, remedy=remedy))
    return config


def require_lightkube() -> None:
    """Raise KubernetesMissing where the extra is not installed."""
    try:
        import lightkube  # noqa: F401
    except ImportError as error:
        raise KubernetesMissing(
            "cria's support for clusters is not installed", details=str(error)
        ) from error


def api_clients(config: SingleConfig) -> tuple[Client, httpx2.Client]:
    """Return two clients of the API server: lightkube's, and one for paths that lightkube has no method for."""
    from lightkube import Client
    from lightkube.config import client_adapter

    try:
        http = client_adapter.Client(config, client_adapter.ConnectionParams(timeout=_timeout()))
        return Client(config=config, timeout=_timeout()), http
    except (OSError, ValueError) as error:  # of files that the kubeconfig names
        raise _no_credentials(error) from error


def kubelet_tls(config: SingleConfig, ca: Path | None) -> ssl.SSLContext:
    """Return how to check kubelets' certificates: `ca` has signed them, else the cluster's CA. Raises UsageError."""
    from lightkube.config.client_adapter import user_cert, verify_cluster
    from lightkube.config.models import User

    user = config.user or User()
    if ca is None and config.cluster.insecure:
        raise UsageError(
            "the certificates of kubelets cannot be checked",
            details="the kubeconfig turns the check off, which cria does not do for kubelets",
            remedy="name the certificate that signs theirs: --kubelet-ca FILE",
        )
    if ca is None:
        return verify_cluster(config.cluster, user, config.abs_file)
    try:
        tls = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"{ca} holds no certificates", details=str(error), remedy="give a file in PEM format"
        ) from error
    if cert := user_cert(user, config.abs_file):
        tls.load_cert_chain(*cert)
    return tls


def kubelet_client(config: SingleConfig, url: str, tls: ssl.SSLContext) -> httpx2.Client:
    """Return a client of the kubelet at `url`, with the user's own credentials."""
    import httpx2
    from lightkube.config.client_adapter import user_auth

    auth = user_auth(config.user)
    return httpx2.Client(base_url=url, verify=tls, auth=auth, timeout=_timeout(), trust_env=False)


@contextmanager
def connection_errors(server: str) -> Iterator[None]:
    """Raise ClusterUnreachable for a request that `server` has not answered; an answer of any status is none.

    Raises KubernetesMissing where the credentials cannot be read, as those of an exec plugin. The cause of
    ClusterUnreachable says how far the request came.
    """
    import httpx2
    from httpx2.websockets import HTTPXWSException, WebSocketUpgradeError
    from lightkube import ApiError
    from lightkube.core.exceptions import ConfigError

    try:
        yield
    except (ApiError, WebSocketUpgradeError):
        raise
    except (ConfigError, OSError) as error:
        raise _no_credentials(error) from error
    except httpx2.TimeoutException as error:
        raise _unreachable(server, f"no answer in time ({type(error).__name__})") from error
    except (httpx2.HTTPError, HTTPXWSException) as error:
        raise _unreachable(server, str(error) or type(error).__name__) from error


def _timeout() -> httpx2.Timeout:
    import httpx2

    return httpx2.Timeout(RESPONSE_SECONDS)


def _unreachable(server: str, why: str) -> ClusterUnreachable:
    remedy = "see whether the cluster answers: kubectl get nodes"
    if "CERTIFICATE_VERIFY_FAILED" in why:
        remedy = "name the certificate that signs its own: --kubelet-ca FILE, or in the kubeconfig"
    return ClusterUnreachable(f"{server} cannot be reached", details=why, remedy=remedy)


def _no_credentials(error: Exception) -> KubernetesMissing:
    return KubernetesMissing(
        "no credentials for a cluster",
        details=f"{type(error).__name__}: {error}",
        remedy="name a kubeconfig that works with kubectl: --kubeconfig FILE --context NAME",
    )
