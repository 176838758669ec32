"""Where the cluster is and who asks: a kubeconfig, or what every pod of the cluster is given."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cria.errors import ClusterUnreachable, KubernetesMissing, UsageError
from cria.events import Listener, Warned, nobody

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2
    from lightkube import Client
    from lightkube.config.kubeconfig import SingleConfig

ANSWER_SECONDS = 30.0
_NO_KUBECONFIG = (AttributeError, KeyError, TypeError)  # what lightkube stumbles over in other YAML


def load_config(
    kubeconfig: Path | None = None, context: str | None = None, listener: Listener | None = None
) -> SingleConfig:
    """The credentials in `kubeconfig`; without one those of the pod we are in, $KUBECONFIG, ~/.kube/config.

    Raises KubernetesMissing.
    """
    require_lightkube()
    import msgspec
    import yaml  # type: ignore[import-untyped]
    from lightkube.config.kubeconfig import KubeConfig
    from lightkube.core.exceptions import ConfigError

    try:
        known = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        config = known.get(context)
    except (ConfigError, OSError, yaml.YAMLError, msgspec.MsgspecError, *_NO_KUBECONFIG) as bad:
        raise _no_credentials(bad) from bad
    assert config is not None
    if config.cluster.insecure:
        words = f"{kubeconfig or 'the kubeconfig'} turns off the check of who the API server is"
        cure = "remove insecure-skip-tls-verify from it"
        (listener or nobody)(Warned(message=words, remedy=cure))
    return config


def require_lightkube() -> None:
    """Raises KubernetesMissing where the extra is not installed."""
    try:
        import lightkube  # noqa: F401
    except ImportError as error:
        raise KubernetesMissing(
            "cria's part for clusters is not installed", details=str(error)
        ) from error


def api_clients(config: SingleConfig) -> tuple[Client, httpx2.Client]:
    """The API server, in lightkube's words and in none: lightkube has no word for a node's proxy."""
    from lightkube import Client
    from lightkube.config import client_adapter

    try:
        http = client_adapter.Client(config, client_adapter.ConnectionParams(timeout=_patience()))
        return Client(config=config, timeout=_patience()), http
    except (OSError, ValueError) as error:  # files that the kubeconfig names
        raise _no_credentials(error) from error


def _patience() -> httpx2.Timeout:
    import httpx2

    return httpx2.Timeout(ANSWER_SECONDS)


def kubelet_tls(config: SingleConfig, ca: Path | None) -> ssl.SSLContext:
    """How kubelets prove who they are: their certificates are signed by `ca`, else by the cluster's own.

    Raises UsageError.
    """
    from lightkube.config.client_adapter import user_cert, verify_cluster

    user = config.user
    assert user is not None
    if ca is None and config.cluster.insecure:
        raise UsageError(
            "nothing tells who a kubelet is",
            details="the kubeconfig turns the check off, which is not done for kubelets",
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
    """A client of the kubelet at `url`, with the user's own credentials."""
    import httpx2
    from lightkube.config.client_adapter import user_auth

    assert config.user is not None
    auth = user_auth(config.user)
    return httpx2.Client(base_url=url, verify=tls, auth=auth, timeout=_patience(), trust_env=False)


@contextmanager
def connection_errors(whom: str) -> Iterator[None]:
    """What hinders a conversation with `whom` becomes an error; answers are another matter.

    Raises ClusterUnreachable, or KubernetesMissing when the credentials are not to be had.
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
        raise _unreachable(whom, f"no answer in time ({type(error).__name__})") from error
    except (httpx2.HTTPError, HTTPXWSException) as error:
        raise _unreachable(whom, str(error) or type(error).__name__) from error


def _unreachable(whom: str, why: str) -> ClusterUnreachable:
    cure = "see whether it is there: kubectl get nodes"
    if "CERTIFICATE_VERIFY_FAILED" in why:
        cure = "name the certificate that signs its own: --kubelet-ca FILE, or in the kubeconfig"
    return ClusterUnreachable(f"{whom} cannot be reached", details=why, remedy=cure)


def _no_credentials(error: Exception) -> KubernetesMissing:
    return KubernetesMissing(
        "no credentials for a cluster",
        details=f"{type(error).__name__}: {error}",
        remedy="name a kubeconfig that works with kubectl: --kubeconfig FILE --context NAME",
    )
