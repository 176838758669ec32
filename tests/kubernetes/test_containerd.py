"""What the other tests rest on: a container runs, is checkpointed and restored."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.kubernetes.conftest import Container


def test_a_container_is_checkpointed_and_restored(
    container: Callable[..., Container],
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
) -> None:
    running = container("controlled.py", "/tmp/control.sock")

    archive = checkpoint(running)
    copy = restore(archive, running)

    with tarfile.open(archive) as tar:
        assert "checkpoint/files.img" in tar.getnames()
    assert Path(f"/proc/{running.pid}").exists(), "the original runs on"
    assert copy.pid != running.pid
    assert "controlled.py" in Path(f"/proc/{copy.pid}/cmdline").read_text()
