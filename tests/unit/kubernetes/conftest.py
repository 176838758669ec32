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

from tests.kubernetes.standin import standing_in


@pytest.fixture
def files(fdinfo: ModuleType) -> dict[str, bytes]:
    return members(fdinfo)


@pytest.fixture
def archive(files: dict[str, bytes], tmp_path: Path) -> Path:
    return stored(tmp_path / "checkpoint.tar", tar(files))


@pytest.fixture
def straw(tmp_path: Path) -> Iterator[Straw]:
    with standing_in(tmp_path) as (standin, kubeconfig, ca):
        yield Straw(standin, kubeconfig, ca)
