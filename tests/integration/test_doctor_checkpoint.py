"""Would a checkpoint restore here and now? Each mismatch is named, and CRIU really minds it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import cria
from cria.engine.launch.launcher import Launched
from cria.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CriuUnsuitable,
    PathTaken,
    PortTaken,
)
from cria.operations.checks import diagnosis as examine
from cria.operations.checks.checkpoint import libraries
from cria.operations.checks.rows import Row
from cria.system.elf import build_id

from .conftest import wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]
Start = Callable[..., Launched]


def dumped(launched: Launched, place: Path, **options: Any) -> cria.Checkpoint:
    checkpoint = cria.dump(launched.pid, place, any_process=True, **options)
    if not options.get("leave_running"):
        launched.process.wait(timeout=60)
        pids = [process.pid for process in checkpoint.manifest.inventory.processes]
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    return checkpoint


def found(checkpoint: cria.Checkpoint, level: str) -> list[Row]:
    return [row for row in examine.checkpoint(checkpoint.path).rows if row.level == level]


def rewritten(checkpoint: cria.Checkpoint, **host: Any) -> None:
    """Change what the manifest says of the host, or its CRIU."""
    path = checkpoint.path / "manifest.json"
    facts = json.loads(path.read_bytes())
    facts["criu_version"] = host.pop("criu_version", facts["criu_version"])
    facts["host"] |= host
    path.write_bytes(msgspec.json.encode(facts))


@pytest.fixture
def little(start: Start, free_port: Callable[[], int], tmp_path: Path) -> tuple[Launched, int]:
    port = free_port()
    return start("little_engine.py", port, tmp_path), port


def test_a_checkpoint_that_fits_has_nothing_but_ok_and_restores(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    checkpoint = dumped(little[0], tmp_path / "checkpoint")

    diagnosis = examine.checkpoint(checkpoint.path)

    assert {row.level for row in diagnosis.rows} == {"ok"}, diagnosis.rows
    assert diagnosis.exit_status == 0
    assert any(str(little[1]) in row.value for row in diagnosis.rows if row.subject == "ports")
    checkpoint.restore(isolate="never").stop(seconds=2)


def test_pids_and_ports_of_a_living_original_are_named(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    launched, port = little
    checkpoint = dumped(launched, tmp_path / "checkpoint", leave_running=True)

    diagnosis = examine.checkpoint(checkpoint.path)
    pids = {row.pid: row for row in diagnosis.rows if row.subject.startswith("PID ")}
    (taken,) = [row for row in diagnosis.rows if row.kind is PortTaken]

    assert launched.pid in pids and "little_engine" in pids[launched.pid].value
    assert all(row.level == "warn" for row in pids.values())  # namespaces are the way out
    assert taken.level == "fail" and str(port) in taken.subject
    assert str(launched.pid) in taken.value and "--ports" in (taken.remedy or "")
    assert diagnosis.exit_status == PortTaken.exit_status
    with pytest.raises(PortTaken):
        checkpoint.restore()


def test_a_zombie_that_holds_a_pid_is_named_without_waiting_for_it(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    launched, _ = little
    checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    begin = time.monotonic()

    (row,) = [row for row in found(checkpoint, "warn") if row.pid == launched.pid]

    assert time.monotonic() - begin < 2
    assert "zombie" in row.value


FILES = {
    "missing": lambda path: path.unlink(),
    "grown": lambda path: path.write_text("longer than before"),
    "of another mode": lambda path: path.chmod(0o640),
}


def files_of_all_kinds(directory: Path) -> dict[str, Path]:
    paths = {name: directory / name.replace(" ", "-") for name in (*FILES, "log")}
    for path in paths.values():
        path.write_text("as it was")
        path.chmod(0o600)
    return paths


def holding(start: Start, paths: dict[str, Path]) -> Launched:
    words: list[object] = []
    for name, path in paths.items():
        words += [path, os.O_WRONLY | os.O_APPEND if name == "log" else os.O_RDONLY]
    return start("blocker.py", "opened", *words)


def test_every_file_that_changed_is_named_at_once_with_what_was_and_what_is(
    start: Start, tmp_path: Path
) -> None:
    paths = files_of_all_kinds(tmp_path)
    checkpoint = dumped(holding(start, paths), tmp_path / "checkpoint")
    for name, change in FILES.items():
        change(paths[name])
    paths["log"].write_text("a log may change")

    rows = {row.subject: row for row in found(checkpoint, "fail")}
    with pytest.raises(CheckpointMismatch) as caught:
        checkpoint.restore()

    assert set(rows) == {
        f"{paths['missing']} is missing",
        f"{paths['grown']} has another size",
        f"{paths['of another mode']} has another mode",
    }
    grown = rows[f"{paths['grown']} has another size"]
    assert (grown.recorded or "").startswith("9 bytes") and grown.value == "18 bytes"
    mode = rows[f"{paths['of another mode']} has another mode"]
    assert (mode.recorded, mode.value) == ("100600", "100640")
    assert all(str(paths[name]) in (caught.value.details or "") for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_criu_minds_each_of_these_files(
    name: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {name: files_of_all_kinds(tmp_path)[name]}
    checkpoint = dumped(holding(start, paths), tmp_path / "checkpoint")
    FILES[name](paths[name])
    monkeypatch.setattr("cria.operations.checks.preflight.restore", lambda *_: None)
    monkeypatch.setattr("cria.operations.checks.preflight.fits", lambda *_: None)

    with pytest.raises(CheckpointMismatch):
        checkpoint.restore()


def test_a_program_that_was_replaced_is_named_by_its_content_and_build_id(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    before = build_id(str(program))
    if before is None:
        pytest.skip("this host's /bin/true has no build-id")
    launched = start("blocker.py", "opened", program, os.O_RDONLY)
    checkpoint = dumped(launched, tmp_path / "checkpoint")
    assert found(checkpoint, "fail") == []
    after = bytes(byte ^ 0xFF for byte in before)
    program.write_bytes(program.read_bytes().replace(before, after))

    (row,) = found(checkpoint, "fail")

    assert row.subject == f"{program} has other content"
    assert row.recorded and row.value not in row.recorded
    assert [(r.recorded, r.value) for r in libraries(checkpoint)] == [
        (before.hex(), f"build-id {after.hex()}")
    ]
    with pytest.raises(CheckpointMismatch):
        checkpoint.restore()
    monkeypatch.setattr("cria.operations.checks.preflight.fits", lambda *_: None)
    with pytest.raises(CheckpointMismatch, match="build-ID"):
        checkpoint.restore()


def test_a_unix_path_that_a_server_has_now_is_named_and_not_taken_over(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    checkpoint = dumped(little[0], tmp_path / "checkpoint")
    path = str(tmp_path / "little.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        (row,) = found(checkpoint, "warn")
        with pytest.raises(PathTaken):
            checkpoint.restore(isolate="never")

        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            server.accept()[0].close()

    assert path in row.subject and str(os.getpid()) in row.value


def test_another_host_is_told_apart_by_cpu_machine_and_criu(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    checkpoint = dumped(little[0], tmp_path / "checkpoint")
    features = checkpoint.manifest.host.cpu_features
    assert features

    rewritten(checkpoint, cpu="Other", cpu_features=[*features, "amx_tile_x"], criu_version="99.1")
    rows = {row.kind: row for row in found(checkpoint, "fail")}
    assert "amx_tile_x" in rows[CheckpointMismatch].value
    assert rows[CheckpointMismatch].recorded == "Other"
    assert rows[CriuUnsuitable].recorded == "99.1"

    rewritten(checkpoint, machine="s390x", kernel="5.10.0")
    assert any(row.recorded == "s390x" for row in found(checkpoint, "fail"))

    rewritten(checkpoint, machine=os.uname().machine)
    assert [row.recorded for row in found(checkpoint, "warn")] == ["5.10.0"]


def test_a_checkpoint_that_was_cut_short_is_a_finding_among_others(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    checkpoint = dumped(little[0], tmp_path / "checkpoint")
    pages = next(checkpoint.images.glob("pages-*.img"))
    os.truncate(pages, pages.stat().st_size - 4096)

    diagnosis = examine.checkpoint(checkpoint.path)

    (row,) = [row for row in diagnosis.rows if row.level == "fail"]
    assert row.kind is CheckpointDamaged and pages.name in row.value
    assert any(row.subject == "PIDs" for row in diagnosis.rows)


def test_the_command_ends_with_the_status_that_a_restore_would_end_with(
    little: tuple[Launched, int], tmp_path: Path
) -> None:
    launched, port = little
    checkpoint = dumped(launched, tmp_path / "checkpoint", leave_running=True)

    done = subprocess.run(
        [sys.executable, "-m", "cria", "doctor", str(checkpoint.path), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    told = json.loads(done.stdout)

    assert done.returncode == told["exit_status"] == PortTaken.exit_status
    assert (told["about"], told["target"]) == ("checkpoint", str(checkpoint.path))
    assert not told["ready"] and told["counts"]["fail"] == 1
    assert [f["code"] for f in told["findings"] if f["level"] == "fail"] == ["port-taken"]
    assert str(port) in done.stdout
