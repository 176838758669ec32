"""Memory that a checkpoint holds without its zeros, or compressed, comes back byte for byte."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cria
from cria.criu import program as binary
from cria.criu.images.directory import CriuImages
from cria.engine.launch.launcher import Launched
from cria.errors import CheckpointDamaged
from cria.memory import zero_pages

from .conftest import ask, end, wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]
Start = Callable[..., Launched]
MIB = 1 << 20


@pytest.fixture
def program(
    start: Start, free_port: Callable[[], int], tmp_path: Path
) -> tuple[Launched, int, list[dict[str, str]]]:
    """The program with its child, its port, and what both tell of their memory."""
    port = free_port()
    launched = start("kinds_of_memory.py", port, tmp_path / "mapped")
    wait_for(lambda: answers(port + 1))
    return launched, port, told(port)


def answers(port: int) -> bool:
    try:
        return bool(ask(port))
    except OSError:
        return False


def told(port: int) -> list[dict[str, str]]:
    return [ask(port), ask(port + 1)]


@pytest.fixture
def restored() -> Iterator[Callable[[cria.Checkpoint], cria.Engine]]:
    engines: list[cria.Engine] = []

    def restore(checkpoint: cria.Checkpoint, **options: object) -> cria.Engine:
        engines.append(checkpoint.restore(**options))
        return engines[-1]

    yield restore
    for engine in engines:
        end(engine.pid)


@pytest.mark.parametrize("compress", [False, True])
def test_every_byte_comes_back(
    program: tuple[Launched, int, list[dict[str, str]]],
    restored: Callable[..., cria.Engine],
    tmp_path: Path,
    compress: bool,
) -> None:
    launched, port, before = program
    assert before[0]["patchy"] != before[1]["patchy"]

    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True, compress=compress)
    launched.process.wait(timeout=60)
    for _ in range(2):
        engine = restored(checkpoint)
        assert told(port) == before
        end(engine.pid)

    checkpoint.verify()


def test_zero_pages_are_not_in_a_checkpoint(
    program: tuple[Launched, int, list[dict[str, str]]], tmp_path: Path
) -> None:
    launched, _, _ = program

    plain = cria.dump(launched.pid, tmp_path / "one", any_process=True, leave_running=True)
    small = cria.dump(
        launched.pid, tmp_path / "two", any_process=True, leave_running=True, compress=True
    )

    # Both processes hold 48 MiB of private memory, of which 32 MiB were written as zero or nearly so.
    assert plain.memory_bytes() < 2 * 48 * MIB
    assert small.memory_bytes() <= plain.memory_bytes()
    assert small.size_bytes < plain.size_bytes
    assert plain.manifest.parts != small.manifest.parts


def test_images_that_are_lean_stay_as_they_are(
    program: tuple[Launched, int, list[dict[str, str]]], tmp_path: Path
) -> None:
    launched, _, _ = program
    made = cria.dump(launched.pid, tmp_path / "cp", any_process=True, leave_running=True)
    images = CriuImages(shutil.copytree(made.images, tmp_path / "images"), binary.find())

    dropped = [zero_pages.drop_zero_pages(images, images.memory(pid)) for pid in images.pids]

    assert set(dropped) == {0}
    assert filecmp.cmpfiles(made.images, images.path, os.listdir(images.path), shallow=False)[
        1:
    ] == ([], [])


def test_a_clone_of_a_compressed_checkpoint_can_be_dumped_in_turn(
    program: tuple[Launched, int, list[dict[str, str]]],
    restored: Callable[..., cria.Engine],
    tmp_path: Path,
) -> None:
    launched, port, before = program
    first = cria.dump(
        launched.pid, tmp_path / "one", any_process=True, leave_running=True, compress=True
    )
    clone = restored(first, ports="offset:10", isolate="always")
    second = cria.dump(clone.pid, tmp_path / "two", any_process=True, compress=True)

    restored(second, ports="offset:10", isolate="always")

    assert told(port) == before
    assert told(port + 20) == before


def test_a_broken_frame_is_an_error_and_nothing_runs(
    program: tuple[Launched, int, list[dict[str, str]]], tmp_path: Path
) -> None:
    launched, port, _ = program
    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True, compress=True)
    launched.process.wait(timeout=60)
    frames = max((tmp_path / "cp" / "memory").glob("*.zst"), key=lambda path: path.stat().st_size)
    with frames.open("r+b") as file:
        file.seek(frames.stat().st_size // 2)
        file.write(b"broken")

    with pytest.raises(CheckpointDamaged, match="cannot be decompressed"):
        checkpoint.restore()

    assert not answers(port)


def test_nothing_runs_when_cria_is_killed_while_it_puts_memory_back(
    program: tuple[Launched, int, list[dict[str, str]]], tmp_path: Path
) -> None:
    launched, port, _ = program
    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True, compress=True)
    launched.process.wait(timeout=60)
    killed = (
        "import os, cria, cria.memory.compressed as stored;"
        "stored.write_into = lambda *_: os.kill(os.getpid(), 9);"
        f"cria.restore({str(checkpoint.path)!r})"
    )

    done = subprocess.run([sys.executable, "-c", killed], check=False, capture_output=True)

    assert done.returncode == -9
    wait_for(lambda: not Path(f"/proc/{launched.pid}").exists())
    assert not answers(port)
    checkpoint.restore()
    end(launched.pid)
