"""A small engine of two processes is dumped and restored with real CRIU, on the same and other ports."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

import cria
from cria.criu.images import framing
from cria.engine.launch.launcher import Launched
from cria.errors import (
    CheckpointDamaged,
    CheckpointExists,
    CheckpointMissing,
    EngineBlocked,
    EngineBusy,
    NoSuchProcess,
    NotAnEngine,
    PathTaken,
    PidTaken,
    PortPlanRefused,
    PortTaken,
    PortUnknown,
)
from cria.operations.restore import processes

from .conftest import ask, wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]
Start = Callable[..., Launched]


@pytest.fixture
def little(start: Start, free_port: Callable[[], int], tmp_path: Path) -> tuple[Launched, int]:
    port = free_port()
    return start("little_engine.py", port, tmp_path), port


def dumped(little: tuple[Launched, int], directory: Path, **options: object) -> cria.Checkpoint:
    launched, _ = little
    checkpoint = cria.dump(launched.pid, directory, any_process=True, **options)
    if not options.get("leave_running"):
        launched.process.wait(timeout=60)
    return checkpoint


def digest(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def stop(engine: cria.Engine) -> None:
    engine.stop(seconds=5)
    wait_for(lambda: not Path(f"/proc/{engine.pid}").exists())


def test_an_engine_comes_back_with_its_connections_pipes_and_shared_memory(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    launched, port = little
    before = ask(port)

    checkpoint = dumped(little, tmp_path / "checkpoint")
    assert launched.process.returncode == -9
    with pytest.raises(ConnectionRefusedError):
        ask(port)
    engine = checkpoint.restore()
    after = ask(port)
    stop(engine)

    assert after["answered"] == before["answered"] + 1
    assert after["shared"] == before["shared"] + 1
    assert after["tcp"] and after["unix"] and after["pipe"]
    assert after["pid"] == before["pid"] == engine.pid


def test_a_listener_its_accepted_connection_and_the_peer_move_together(
    little: tuple[Launched, int], free_port: Callable[[], int], tmp_path: Path
) -> None:
    _, port = little
    new = free_port()
    before = ask(port)

    engine = dumped(little, tmp_path / "checkpoint").restore(ports={port: new})
    after = ask(new)
    with pytest.raises(ConnectionRefusedError):
        ask(port)
    stop(engine)

    assert before["ends"][0] == port
    assert after["ends"][0] == new
    assert after["tcp"]


def test_a_checkpoint_is_restored_several_times_and_never_changes(
    little: tuple[Launched, int], free_port: Callable[[], int], tmp_path: Path
) -> None:
    _, port = little
    checkpoint = dumped(little, tmp_path / "checkpoint")
    whole = digest(checkpoint.path)

    answers = []
    for number in range(4):
        new = free_port() if number % 2 else port
        engine = checkpoint.restore(ports={port: new})
        answers.append(ask(new)["answered"])
        stop(engine)

    assert answers == [answers[0]] * 4
    assert digest(checkpoint.path) == whole


@pytest.mark.parametrize("isolate", ["never", "always"])
def test_a_restore_reads_files_img_once_and_writes_it_once(
    little: tuple[Launched, int],
    tmp_path: Path,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    isolate: Literal["never", "always"],
) -> None:
    path = dumped(little, tmp_path / "checkpoint").path
    done: list[tuple[str, Path]] = []

    def counted(name: Literal["read", "write"]) -> None:
        real = getattr(framing, name)

        def call(path: Path, *args: object, **options: object) -> object:
            done.append((name, path))
            return real(path, *args, **options)

        monkeypatch.setattr(framing, name, call)

    counted("read")
    counted("write")
    stop(cria.restore(path, ports={little[1]: free_port()}, isolate=isolate))

    names = [(action, path.name) for action, path in done]
    assert len(names) == len(set(names)), "an image is read once, whatever asks for it"
    assert [
        path.parent for action, path in done if action == "read" and path.name == "files.img"
    ] == [path / "images"]
    assert [path.name for action, path in done if action == "write"] == ["files.img"]


def test_an_engine_that_is_left_running_serves_on(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    launched, port = little
    before = ask(port)

    checkpoint = dumped(little, tmp_path / "checkpoint", leave_running=True)
    after = ask(port)

    assert after["answered"] == before["answered"] + 1
    assert after["tcp"] and after["unix"] and after["pipe"]
    assert launched.process.poll() is None
    assert checkpoint.manifest.options.leave_running


def test_the_manifest_describes_what_was_dumped(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    launched, port = little

    checkpoint = dumped(little, tmp_path / "checkpoint")
    manifest = cria.open_checkpoint(checkpoint.path).manifest

    assert manifest.inventory.root.pid == launched.pid
    assert len(manifest.inventory.processes) >= 2
    assert port in {socket.local.port for socket in manifest.inventory.listeners()}
    assert manifest.host.kernel == os.uname().release
    assert manifest.criu_version
    assert [file.path for file in manifest.saved_files if "psm_" in file.path]
    assert {"write-images"} <= {step.id for step in manifest.timings.steps}
    assert checkpoint.path.stat().st_mode & 0o777 == 0o700


def test_a_dump_that_ends_the_engine_removes_its_shared_memory_and_socket_paths(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    checkpoint = dumped(little, tmp_path / "checkpoint")

    assert not (tmp_path / "little.sock").exists()
    assert all(not os.path.lexists(file.path) for file in checkpoint.manifest.saved_files)


def test_a_failed_dump_leaves_the_engine_serving_and_nothing_on_disk(
    little: tuple[Launched, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dump fails when the images are written, the engine is frozen and nothing is published."""
    _, port = little

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cria.model.manifest.write", full)
    with pytest.raises(OSError, match="No space"):
        dumped(little, tmp_path / "checkpoints" / "one")
    monkeypatch.undo()

    assert ask(port)["tcp"]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_failed_restore_leaves_nothing(
    little: tuple[Launched, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore fails when every process exists."""
    _, port = little
    checkpoint = dumped(little, tmp_path / "checkpoint")
    views = set(Path("/tmp").glob("cria-restore-*"))

    def unhealthy(_state: object) -> None:
        raise cria.CriaError("not today")

    monkeypatch.setattr(processes, "wait_until_healthy", unhealthy)
    with pytest.raises(cria.CriaError, match="not today"):
        checkpoint.restore()
    monkeypatch.undo()

    with pytest.raises(ConnectionRefusedError):
        ask(port)
    pid = checkpoint.manifest.inventory.root.pid
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert set(Path("/tmp").glob("cria-restore-*")) == views
    assert all(not os.path.lexists(file.path) for file in checkpoint.manifest.saved_files)
    stop(checkpoint.restore())


def test_a_log_that_has_grown_does_not_matter(little: tuple[Launched, int], tmp_path: Path) -> None:
    launched, port = little
    checkpoint = dumped(little, tmp_path / "checkpoint")
    with launched.log.open("a") as log:
        log.write("written by another program\n")

    engine = checkpoint.restore()

    assert ask(port)["tcp"]
    stop(engine)


class TestBadInput:
    def test_a_pid_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(NoSuchProcess, match="4194000"):
            cria.dump(4194000, tmp_path / "checkpoint")

    def test_a_process_that_is_no_engine(
        self, little: tuple[Launched, int], tmp_path: Path
    ) -> None:
        launched, port = little
        with pytest.raises(NotAnEngine):
            cria.dump(launched.pid, tmp_path / "checkpoint")
        assert ask(port)["tcp"]

    def test_an_output_that_exists(self, little: tuple[Launched, int], tmp_path: Path) -> None:
        (tmp_path / "checkpoint").mkdir()
        with pytest.raises(CheckpointExists):
            dumped(little, tmp_path / "checkpoint")
        assert ask(little[1])["tcp"]

    def test_an_io_uring_ring(self, start: Start, tmp_path: Path, programs: Path) -> None:
        log = (tmp_path / "ring.log").open("a")
        ring = subprocess.Popen(
            [sys.executable, programs / "io_uring_ring.py"], stdout=log, stdin=subprocess.DEVNULL
        )
        try:
            wait_for(lambda: "ready" in (tmp_path / "ring.log").read_text())
            with pytest.raises(EngineBlocked) as caught:
                cria.dump(ring.pid, tmp_path / "checkpoint", any_process=True)
            assert "io_uring" in caught.value.message
            assert "fd " in (caught.value.details or "")
            assert "cria run" in (caught.value.remedy or "")
            assert ring.poll() is None
        finally:
            ring.kill()
            ring.wait()

    def test_two_dumps_at_once(self, little: tuple[Launched, int], tmp_path: Path) -> None:
        import fcntl

        launched, port = little
        other = os.open(f"/proc/{launched.pid}", os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        try:
            with pytest.raises(EngineBusy):
                dumped(little, tmp_path / "checkpoint")
        finally:
            os.close(other)
        assert ask(port)["tcp"]

    def test_a_checkpoint_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointMissing):
            cria.restore(tmp_path / "none")

    def test_a_checkpoint_that_was_cut_short(
        self, little: tuple[Launched, int], tmp_path: Path
    ) -> None:
        checkpoint = dumped(little, tmp_path / "checkpoint")
        pages = next(checkpoint.images.glob("pages-*.img"))
        os.truncate(pages, pages.stat().st_size - 4096)
        with pytest.raises(CheckpointDamaged) as caught:
            cria.restore(checkpoint.path)
        assert pages.name in (caught.value.details or "")

    def test_pids_that_are_taken(self, little: tuple[Launched, int], tmp_path: Path) -> None:
        launched, port = little
        checkpoint = dumped(little, tmp_path / "checkpoint", leave_running=True)
        with pytest.raises((PortTaken, PortPlanRefused)):
            checkpoint.restore(isolate="never")
        with pytest.raises(PidTaken) as caught:
            checkpoint.restore(ports="fresh", isolate="never")
        assert str(launched.pid) in caught.value.message
        assert "little_engine" in (caught.value.details or "")
        assert ask(port)["tcp"]

    def test_a_port_the_checkpoint_does_not_have(
        self, little: tuple[Launched, int], tmp_path: Path
    ) -> None:
        checkpoint = dumped(little, tmp_path / "checkpoint")
        with pytest.raises(PortUnknown) as caught:
            checkpoint.restore(ports={9: 8001})
        assert str(little[1]) in f"{caught.value.details} {caught.value.remedy}"

    def test_a_port_that_is_taken(
        self,
        little: tuple[Launched, int],
        start: Start,
        free_port: Callable[[], int],
        tmp_path: Path,
    ) -> None:
        checkpoint = dumped(little, tmp_path / "checkpoint")
        taken = free_port()
        other = tmp_path / "other"
        other.mkdir()
        stranger = start("little_engine.py", taken, other)
        with pytest.raises(PortTaken) as caught:
            checkpoint.restore(ports={little[1]: taken})
        assert str(taken) in caught.value.message
        assert str(stranger.pid) in f"{caught.value.message} {caught.value.details}"
        assert ask(taken)["tcp"]

    def test_shared_memory_that_is_in_use(
        self, little: tuple[Launched, int], tmp_path: Path
    ) -> None:
        import mmap

        checkpoint = dumped(little, tmp_path / "checkpoint")
        segment = Path(next(f.path for f in checkpoint.manifest.saved_files if "psm_" in f.path))
        segment.write_bytes(b"x" * 4096)
        with (
            segment.open("r+b") as file,
            mmap.mmap(file.fileno(), 4096),
            pytest.raises(PathTaken) as caught,
        ):
            checkpoint.restore(isolate="never")
        assert str(os.getpid()) in caught.value.message
        assert segment.read_bytes() == b"x" * 4096
        segment.unlink()
