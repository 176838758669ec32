"""Programs on a GPU are started and ended as those of tests/integration."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import ended_after, start

__all__ = ["ended_after", "start"]


@pytest.fixture
def shm_is_left_clean() -> Iterator[None]:
    """Other engines may run on a machine with GPUs: what they leave on /dev/shm is not ours."""
    yield
