"""A cluster of straw, and the archives of a container's checkpoint that the tests of this folder read and rewrite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from runtime_archives import members, stored, tar
from straw import Straw

from cria.kubernetes.kubelet.cluster import Cluster
from tests.kubernetes.standin import StandIn, kubeconfig, standing_in


@pytest.fixture
def files(fdinfo: ModuleType) -> dict[str, bytes]:
    return members(fdinfo)


@pytest.fixture
def archive(files: dict[str, bytes], tmp_path: Path) -> Path:
    return stored(tmp_path / "checkpoint.tar", tar(files))


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, Path, Cluster]]:
    """One server and one client for all tests: keys and handshakes take longer than the tests do."""
    with standing_in(tmp_path_factory.mktemp("cluster")) as (standin, kubeconfig, ca):
        yield standin, ca, Cluster(kubeconfig=kubeconfig)


@pytest.fixture
def straw(standing: tuple[StandIn, Path, Cluster], tmp_path: Path) -> Straw:
    standin, ca, cluster = standing
    standin.forget()
    return Straw(standin, kubeconfig(tmp_path / "kubeconfig", standin.url, ca), ca, cluster)
