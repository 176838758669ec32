"""A node without a cluster to try things on: `sudo .venv/bin/pytest -s tests/kubernetes/play.py`; Ctrl-C ends it.

A real containerd runs a small server that pauses as an engine does; the API server and the kubelet are fakes.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any

import pytest

from tests.kubernetes.test_checkpoint import FakeKubelet, annotations, conf, kubelet, serve, serving
from tests.kubernetes.test_criu_action import Serving

__all__ = ["annotations", "conf", "kubelet", "serve", "serving"]


def test_play(kubelet: FakeKubelet, serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    signal.signal(signal.SIGTERM, interrupt)
    ref = kubelet.add(serving.container)
    with capsys.disabled():
        print(f"\n\nexport KUBECONFIG={kubelet.kubeconfig}")
        print(f"cria kubernetes checkpoint {ref} --python {sys.executable}")
        print(f"curl http://127.0.0.1:{serving.port}/state")
        print(f"cria kubernetes prune {kubelet.directory} --keep 1")
        print("\nCtrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt
