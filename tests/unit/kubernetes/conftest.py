"""A fake cluster, and the archives of a container's checkpoint that the tests of this folder read and rewrite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_cluster import FakeCluster
from runtime_archives import members, stored, tar

from cria.kubernetes.kubelet.cluster import Cluster
from tests.kubernetes.fake_api_server import FakeApiServer, kubeconfig, serve_api


@pytest.fixture
def files(fdinfo: ModuleType) -> dict[str, bytes]:
    return members(fdinfo)


@pytest.fixture
def archive(files: dict[str, bytes], tmp_path: Path) -> Path:
    return stored(tmp_path / "checkpoint.tar", tar(files))


@pytest.fixture(scope="session")
def shared_api(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[FakeApiServer, Path, Cluster]]:
    """One server and one client for all tests: keys and handshakes take longer than the tests do."""
    with serve_api(tmp_path_factory.mktemp("cluster")) as (api, kubeconfig, ca):
        yield api, ca, Cluster(kubeconfig=kubeconfig)


@pytest.fixture
def fake_cluster(shared_api: tuple[FakeApiServer, Path, Cluster], tmp_path: Path) -> FakeCluster:
    api, ca, cluster = shared_api
    api.reset()
    return FakeCluster(api, kubeconfig(tmp_path / "kubeconfig", api.url, ca), ca, cluster)
