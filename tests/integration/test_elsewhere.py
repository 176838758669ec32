"""A checkpoint goes to another host in one file; and restores, however many, leave nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cria
from cria.criu import program
from cria.engine.launch.launcher import Launched
from cria.operations.pack import pack
from cria.system.netfilter import Netfilter
from cria.system.procfs import pids

from .conftest import ask, end, wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]
Start = Callable[..., Launched]

REPLICAS = 20
ASK = """
import json, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as connection:
    connection.sendall(b"state\\n")
    print(connection.makefile().readline())
"""


def installed_in_tmp() -> list[Path]:
    """Python, CRIU and cria are installed on the other host too, wherever that is."""
    places = (sys.prefix, program.find().resolve().parents[2], Path(cria.__file__).parents[1])
    return sorted(Path(p) for p in map(str, places) if p.startswith("/tmp/"))


class OtherHost:
    """Namespaces like another host: its own name, network and mounts, /dev/shm and /tmp empty.

    What is installed is the same there. PIDs are those of this host, so those of the original are taken.
    """

    address = "10.99.0.7"

    def __init__(self) -> None:
        # /dev/shm shows the old /tmp for as long as it takes to keep what is installed there.
        keep = "".join(
            f"mkdir -p {there} && mount --bind /dev/shm/{there.relative_to('/tmp')} {there} && "
            for there in installed_in_tmp()
        )
        setup = (
            "mount --bind /tmp /dev/shm && mount -t tmpfs tmpfs /tmp && "
            f"{keep} umount /dev/shm && mount -t tmpfs tmpfs /dev/shm && hostname other-host && "
            f"ip link set lo up && ip address add {self.address}/32 dev lo && echo ready && exec cat"
        )
        self.anchor = subprocess.Popen(
            ["unshare", "--mount", "--net", "--uts", "--propagation", "private", "sh", "-c", setup],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.anchor.stdout is not None
        assert self.anchor.stdout.readline() == b"ready\n"

    def run(self, *argv: object, stdin: object = None) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self.anchor.pid}", "--mount", "--net", "--uts", "--wd=/"]
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [*enter, *map(str, argv)],
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(Path(cria.__file__).parents[1])},
        )

    def cria(self, *words: object, stdin: object = None) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "cria", *words, stdin=stdin)

    def ask(self, port: int, address: str = "127.0.0.1") -> dict[str, object]:
        answer = self.run(sys.executable, "-c", ASK, address, port)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)  # type: ignore[no-any-return]

    def inhabitants(self) -> set[int]:
        """The processes in its network."""
        here = os.stat(f"/proc/{self.anchor.pid}/ns/net").st_ino
        found = set()
        for pid in pids():
            try:
                if os.stat(f"/proc/{pid}/ns/net").st_ino == here:
                    found.add(pid)
            except OSError:
                continue
        return found - {self.anchor.pid}

    def close(self) -> None:
        self.anchor.communicate(timeout=10)


@pytest.fixture
def other_host() -> Iterator[OtherHost]:
    host = OtherHost()
    yield host
    for pid in sorted(host.inhabitants()):
        end(pid)
    host.close()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engine lives: in /tmp, so not there on the other host."""
    place = tmp_path_factory.mktemp("home")
    assert str(place).startswith("/tmp/")
    return place


def test_it_is_packed_here_and_answers_on_another_host(
    start: Start,
    free_port: Callable[[], int],
    home: Path,
    tmp_path: Path,
    other_host: OtherHost,
) -> None:
    """The original serves on, and holds its PIDs."""
    port = free_port()
    launched = start("little_engine.py", port, home)
    for _ in range(3):
        before = ask(port)
    checkpoint = cria.dump(
        launched.pid, tmp_path / "checkpoint", any_process=True, leave_running=True
    )
    pack(checkpoint, tmp_path / "archive")
    assert other_host.run("hostname").stdout == "other-host\n"
    assert other_host.run("ls", "/dev/shm").stdout == ""
    assert other_host.run("ls", home).returncode != 0

    with (tmp_path / "archive").open("rb") as archive:
        unpacked = other_host.cria("unpack", "-", "/tmp/checkpoint", stdin=archive)
    assert unpacked.returncode == 0, unpacked.stderr
    verified = other_host.cria("verify", "/tmp/checkpoint")
    assert verified.returncode == 0, verified.stderr
    restored = other_host.cria("restore", "/tmp/checkpoint", "--json")
    assert restored.returncode == 0, restored.stderr

    answer = other_host.ask(port)
    assert answer["answered"] == answer["shared"] == before["answered"] + 1
    assert answer["tcp"] and answer["unix"] and answer["pipe"]
    assert ask(port)["answered"] == before["answered"] + 1, "the original goes its own way"
    engine = json.loads(restored.stdout)["engines"][0]["pid"]
    assert os.stat(f"/proc/{engine}/ns/pid").st_ino != os.stat("/proc/self/ns/pid").st_ino
    assert not list(Path("/tmp").glob(f"checkpoint/{cria.checkpoint.handle.MANIFEST}"))


def test_it_takes_its_own_pids_there_where_they_are_free(
    start: Start,
    free_port: Callable[[], int],
    home: Path,
    tmp_path: Path,
    other_host: OtherHost,
) -> None:
    port = free_port()
    launched = start("little_engine.py", port, home)
    checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    launched.process.wait(timeout=60)
    pack(checkpoint, tmp_path / "archive")

    with (tmp_path / "archive").open("rb") as archive:
        assert other_host.cria("unpack", "-", "/tmp/checkpoint", stdin=archive).returncode == 0
    restored = other_host.cria("restore", "/tmp/checkpoint", "-p", f"{port}=7001", "--json")
    assert restored.returncode == 0, restored.stderr

    assert json.loads(restored.stdout)["engines"][0]["pid"] == launched.pid
    assert other_host.ask(7001)["pid"] == launched.pid
    with pytest.raises(ConnectionRefusedError):
        ask(port)


def test_a_model_that_the_other_host_lacks_is_named(
    start: Start,
    free_port: Callable[[], int],
    home: Path,
    tmp_path: Path,
    other_host: OtherHost,
) -> None:
    (home / "model").mkdir()
    (home / "model" / "model.safetensors").write_bytes(b"weights")
    launched = start("little_engine.py", free_port(), home, "--model", home / "model")
    checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    launched.process.wait(timeout=60)
    pack(checkpoint, tmp_path / "archive")

    with (tmp_path / "archive").open("rb") as archive:
        assert other_host.cria("unpack", "-", "/tmp/checkpoint", stdin=archive).returncode == 0
    refused = other_host.cria("restore", "/tmp/checkpoint")

    assert refused.returncode == cria.errors.CheckpointMismatch.exit_status
    assert f"{home}/model/model.safetensors is missing" in refused.stderr
    assert other_host.inhabitants() == set()


# What is left ----------------------------------------------------------------------------------


def left_on_the_host(ours: Path) -> dict[str, set[object]]:
    """Whatever a restore could leave; other tests' directories in /tmp are not looked into."""
    namespaces = set()
    for pid in pids():
        for kind in ("mnt", "pid", "ipc", "net"):
            try:
                namespaces.add((kind, os.readlink(f"/proc/{pid}/ns/{kind}")))
            except OSError:
                continue
    return {
        "mounts": set(Path("/proc/self/mountinfo").read_text().splitlines()),
        "namespaces": namespaces,
        "nft tables": nft_tables(),
        "iptables rules": set(output_of("iptables-save")),
        "/dev/shm": set(os.listdir("/dev/shm")),
        "/tmp": {name for name in os.listdir("/tmp") if name.startswith("cria-")},
        "the engine's directory": set(os.listdir(ours)),
        "listeners": {line.split()[3] for line in output_of("ss --no-header -lnt")},
        "links": set(os.listdir("/sys/class/net")),
    }


def nft_tables() -> set[object]:
    with Netfilter() as nft:
        return set(nft.tables())


def output_of(command: str) -> list[str]:
    try:
        run = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return [line for line in run.stdout.splitlines() if not line.startswith("#")]


def digest(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("isolate", ["auto", "always", "net"])
def test_twenty_restores_leave_the_checkpoint_and_the_host_as_they_were(
    isolate: str,
    start: Start,
    home: Path,
    tmp_path: Path,
    ended_after: list[int],
) -> None:
    port = 21490
    launched = start("little_engine.py", port, home)
    answered = ask(port)["answered"]
    checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    launched.process.wait(timeout=60)
    # A clone has a log of its own, which stays: the first restore makes it.
    restore_and_stop(checkpoint, port, isolate, ended_after)
    before, whole = left_on_the_host(home), digest(checkpoint.path)

    answers = [restore_and_stop(checkpoint, port, isolate, ended_after) for _ in range(REPLICAS)]

    assert [answer["answered"] for answer in answers] == [answered + 1] * REPLICAS
    assert all(answer["tcp"] and answer["unix"] and answer["pipe"] for answer in answers)
    after = left_on_the_host(home)
    left = {name: after[name] - before[name] for name in before if after[name] - before[name]}
    assert left == {}
    assert digest(checkpoint.path) == whole
    assert checkpoint.verify()


def restore_and_stop(
    checkpoint: cria.Checkpoint, port: int, isolate: str, ended_after: list[int]
) -> dict[str, object]:
    engine = checkpoint.restore(isolate=isolate)
    ended_after.append(engine.pid)
    namespace = os.readlink(f"/proc/{engine.pid}/ns/pid")
    inside = [pid for pid in pids() if is_in(pid, namespace)]
    ours = namespace == os.readlink("/proc/self/ns/pid")
    try:
        # In a network of its own the little engine, which serves no HTTP API, is asked inside.
        if isolate == "net":
            enter = ["nsenter", f"--target={engine.pid}", "--net", sys.executable, "-c", ASK]
            run = subprocess.run(
                [*enter, "127.0.0.1", str(port)], capture_output=True, text=True, check=True
            )
            return json.loads(run.stdout)  # type: ignore[no-any-return]
        return ask(port)
    finally:
        engine.stop(seconds=5)
        wait_for(lambda: not Path(f"/proc/{engine.pid}").exists())
        if not ours:
            wait_for(lambda: not any(is_in(pid, namespace) for pid in inside))
        ended_after.remove(engine.pid)


def is_in(pid: int, namespace: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == namespace
    except OSError:
        return False
