"""A remapped archive restores beside its original, on a node whose network both share."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cria.kubernetes.archive.remap import remap
from cria.network.requests import PortRequests
from cria.system.compression import Compression, writer
from tests.kubernetes.conftest import Container, Sandbox
from tests.kubernetes.cri import Cri
from tests.kubernetes.registry import Registry


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A container that serves HTTP on `port` and keeps a pair over a listener on `inner`."""

    container: Container
    port: int
    inner: int


@pytest.fixture
def serving(
    container: Callable[..., Container], free_port: Callable[[], int], tmp_path: Path
) -> Serving:
    conf = tmp_path / "criu.conf"
    conf.write_text("tcp-established\nskip-in-flight\nnetwork-lock nftables\n")
    port, inner = free_port(), free_port()
    annotations = {"org.criu.config": str(conf)}
    name = f"cria-test-{os.getpid()}-{port}"
    running = container("http_pair.py", port, inner, name, annotations=annotations)
    return Serving(container=running, port=port, inner=inner)


def ask(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        state: dict[str, Any] = json.load(answer)
        return state


def listening_on(container: Container) -> set[int]:
    """Return the ports of TCP listeners that the processes of a container have open."""
    inside = f"/proc/{container.pid}/root/proc"
    inodes = {
        os.readlink(f"{inside}/{pid}/fd/{fd}")
        for pid in filter(str.isdigit, os.listdir(inside))
        for fd in os.listdir(f"{inside}/{pid}/fd")
        if os.readlink(f"{inside}/{pid}/fd/{fd}").startswith("socket:")
    }
    rows = [
        line.split() for line in Path(f"/proc/{container.pid}/net/tcp").read_text().splitlines()
    ]
    return {
        int(row[1].partition(":")[2], 16)
        for row in rows[1:]
        if row[3] == "0A" and f"socket:[{row[9]}]" in inodes
    }


def test_a_remapped_archive_restores_beside_its_original(
    serving: Serving,
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    client = socket.create_connection(("127.0.0.1", serving.port))  # is served while it is dumped
    before = [ask(serving.port)["count"] for _ in range(3)]
    archive = checkpoint(serving.container)
    original = ask(serving.port)
    new_port = free_port()

    done = remap(archive, tmp_path / "new.tar", ports={serving.port: new_port})
    copy = restore(done.path, serving.container)

    answers = [ask(new_port), ask(new_port), ask(serving.port)]
    assert before == [1, 2, 3]
    assert original["count"] == 4, "the original runs on"
    assert [answer["count"] for answer in answers] == [4, 5, 5], "each has a state of its own"
    assert all(answer["pair"] for answer in answers), "both pairs carry bytes"
    assert listening_on(copy) == {new_port, done.plan.ports.new_port(serving.inner)}
    assert listening_on(serving.container) == {serving.port, serving.inner}
    client.close()


def test_an_archive_that_was_not_remapped_cannot_restore_beside_its_original(
    serving: Serving, checkpoint: Callable[[Container], Path], restore: Callable[..., Container]
) -> None:
    archive = checkpoint(serving.container)

    with pytest.raises(Exception, match="criu failed"):
        restore(archive, serving.container)

    assert ask(serving.port)["pair"], "the original is not harmed"


def test_the_command_prints_the_path_of_the_new_archive_and_inspect_what_it_holds(
    serving: Serving, checkpoint: Callable[[Container], Path], tmp_path: Path
) -> None:
    archive, new = checkpoint(serving.container), tmp_path / "new.tar"
    untouched = archive.read_bytes()
    moved = f"{serving.port}={serving.port - 1}"
    command = [sys.executable, "-m", "cria", "kubernetes", "remap", archive, "-p", moved, "-o", new]

    result = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = subprocess.run(
        [sys.executable, "-m", "cria", "inspect", new, "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    document = json.loads(shown.stdout)
    ports = {s["local"]["port"] for s in document["sockets"] if s["state"] == "LISTEN"}
    assert result.stdout == f"{new}\n"
    assert serving.port - 1 in ports and not ports & {serving.port, serving.inner}
    assert document["origin"]["runtime"] == "containerd"
    assert document["origin"]["pod"] == serving.container.sandbox.config["metadata"]["name"]
    assert {process["name"] for process in document["processes"]} == {"python"}
    assert new.stat().st_mode & 0o777 == 0o600
    assert archive.read_bytes() == untouched


def test_addresses_move_with_the_ports(
    serving: Serving,
    checkpoint: Callable[[Container], Path],
    restore: Callable[..., Container],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    new_port = free_port()
    requests = PortRequests.parse({serving.port: new_port}, addresses=["127.0.0.1=127.0.0.2"])

    done = remap(checkpoint(serving.container), tmp_path / "new.tar", ports=requests)
    restore(done.path, serving.container)

    inner = next(move for move in done.plan.ports if move.old.port == serving.inner)
    assert ask(new_port)["pair"]
    with socket.create_connection(("127.0.0.2", inner.new.port)):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", inner.new.port))


@pytest.fixture
def run_image(
    make_sandbox: Callable[..., Sandbox],
    run_container: Callable[..., Container],
    registry: Registry,
    cri: Cri,
) -> Callable[..., Container]:
    """Push a container image, pull it as a node does and run a container of it like another."""

    def run(layout: Path, like: Container) -> Container:
        image = registry.add_layout(f"checkpoint-{like.name}", layout)
        cri.PullImage(image={"image": image})
        return run_container(make_sandbox(), image, **like.fields)

    return run


@pytest.mark.parametrize("compressed", ["none", "gzip", "zstd"])
def test_a_container_image_of_the_archive_restores_after_it_was_pulled(
    compressed: Compression,
    serving: Serving,
    checkpoint: Callable[[Container], Path],
    run_image: Callable[..., Container],
    tmp_path: Path,
) -> None:
    packed = tmp_path / "packed"
    with packed.open("wb") as file, writer(file, compressed) as stream:
        stream.write(checkpoint(serving.container).read_bytes())

    done = remap(packed, f"oci:{tmp_path / 'image'}", ports=f"{serving.port}={serving.port - 1}")
    run_image(done.path, serving.container)

    assert ask(serving.port - 1)["pair"]
    assert ask(serving.port)["pair"]
