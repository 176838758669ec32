"""An inventory in a checkpoint is shown as that of the live engine; an engine in a container is seen from the host."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cria
from cria.cli import main
from cria.engine.inventory.collect import collect_inventory
from cria.engine.launch.launcher import Launched

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]
Start = Callable[..., Launched]


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "--json", *arguments])
    out = capsys.readouterr().out
    assert ended.value.code == 0, out
    return json.loads(out)


def test_a_checkpoint_shows_what_the_live_processes_showed(
    start: Start,
    free_port: Callable[[], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    launched = start("little_engine.py", port, tmp_path)
    live = document(capsys, str(launched.pid), "--any-process")

    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True, leave_running=True)
    stored = document(capsys, str(checkpoint.path))

    assert (live["source"], stored["source"]) == ("engine", "checkpoint")
    assert stored["target"] == str(checkpoint.path)
    for part in ("sockets", "unix_sockets", "shared_files"):
        assert stored[part] == live[part], part
    assert {s["local"]["port"] for s in stored["sockets"] if s["state"] == "LISTEN"} == {port}
    assert stored["timings"]["wall_seconds"] > 0


def test_a_process_in_other_namespaces_is_seen_from_the_host(start: Start, tmp_path: Path) -> None:
    """It has a network and mounts of its own, as in a container: its port 4242 is not this host's."""
    launched = start("listener_in_namespaces.py", 4242)
    inventory = collect_inventory(launched.pid, any_process=True)

    (listener,) = inventory.listeners()
    assert (listener.local.port, listener.backlog) == (4242, 11)
    assert listener.netns == inventory.root.namespaces["net"] != own_namespace("net")
    assert inventory.root.namespaces["mnt"] != own_namespace("mnt")
    (shared,) = inventory.shared_files
    assert (shared.path, shared.size_bytes) == ("/dev/shm/inside", 4096)
    assert not Path("/dev/shm/inside").exists()


def own_namespace(namespace: str) -> int:
    return Path(f"/proc/self/ns/{namespace}").stat().st_ino
