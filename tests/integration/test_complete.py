"""A checkpoint is complete and never changes: its digests, fingerprints and saved files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import cria
from cria.engine.launch.launcher import Launched
from cria.errors import CheckpointDamaged, CheckpointMismatch, NoSpace
from cria.model import manifest
from cria.model.manifest import MANIFEST
from cria.operations.pack import pack

from .conftest import ask, wait_for

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]
Start = Callable[..., Launched]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"layers": 4}')
    (directory / "model.safetensors").write_bytes(os.urandom(1 << 20))
    return directory


@pytest.fixture
def dumped(
    start: Start, free_port: Callable[[], int], tmp_path: Path, model: Path
) -> tuple[cria.Checkpoint, int, Launched]:
    """A little engine with a model, dumped and ended."""
    port = free_port()
    launched = start("little_engine.py", port, tmp_path, "--model", model)
    ask(port)
    checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
    launched.process.wait(timeout=60)
    return checkpoint, port, launched


def restored(checkpoint: cria.Checkpoint, port: int) -> dict[str, object]:
    engine = checkpoint.restore()
    try:
        return ask(port)
    finally:
        engine.stop(seconds=5)
        wait_for(lambda: not Path(f"/proc/{engine.pid}").exists())


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount something in the test's directory; it is unmounted afterwards."""
    mounts: list[Path] = []

    def mount(*arguments: str) -> Path:
        target = tmp_path / f"mount-{len(mounts)}"
        target.mkdir()
        subprocess.run(["mount", *arguments, target], check=True)
        mounts.append(target)
        return target

    yield mount
    for target in mounts:
        subprocess.run(["umount", "--lazy", target], check=True)


class TestIntegrity:
    def test_every_part_has_a_digest_and_verify_agrees(
        self, dumped: tuple[cria.Checkpoint, int, Launched]
    ) -> None:
        checkpoint, _, _ = dumped
        parts = cria.open_checkpoint(checkpoint.path).manifest.parts

        assert parts and all(len(part.digest) == 64 for part in parts)
        assert {"carried/0000", "images/files.img"} <= {part.path for part in parts}
        assert checkpoint.verify() == sum(part.size_bytes for part in parts)

    def test_verify_names_images_that_were_edited_by_hand(
        self, dumped: tuple[cria.Checkpoint, int, Launched]
    ) -> None:
        checkpoint, _, _ = dumped
        edited = [checkpoint.images / "pages-1.img", checkpoint.images / "files.img"]
        for path in edited:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)

        run = subprocess.run(
            [sys.executable, "-m", "cria", "verify", checkpoint.path],
            capture_output=True,
            text=True,
            check=False,
        )

        assert run.returncode == CheckpointDamaged.exit_status == 41
        assert all(path.name in run.stderr for path in edited)
        assert "pages-2.img" not in run.stderr

    def test_a_restore_refuses_a_changed_image_before_it_starts_anything(
        self, dumped: tuple[cria.Checkpoint, int, Launched]
    ) -> None:
        checkpoint, _, _ = dumped
        image = checkpoint.images / "files.img"
        content = bytearray(image.read_bytes())
        content[-1] ^= 1
        image.write_bytes(content)

        with pytest.raises(CheckpointDamaged) as caught:
            checkpoint.restore()

        assert "files.img" in (caught.value.details or "")

    def test_an_engine_that_runs_on_serves_while_the_parts_are_digested(
        self,
        start: Start,
        free_port: Callable[[], int],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from cria.system import digests

        port = free_port()
        launched = start("little_engine.py", port, tmp_path)
        answers = []
        real = digests.parts

        def parts(*arguments: object) -> object:
            answers.append(ask(port))
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr("cria.system.digests.parts", parts)
        cria.dump(launched.pid, tmp_path / "one", any_process=True, leave_running=True)

        assert [answer["tcp"] for answer in answers] == [True]

    def test_a_dump_that_fails_later_leaves_the_engine_serving_and_no_checkpoint(
        self,
        start: Start,
        free_port: Callable[[], int],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        port = free_port()
        launched = start("little_engine.py", port, tmp_path)

        def full(*_arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("cria.model.manifest.write", full)
        with pytest.raises(OSError, match="No space"):
            cria.dump(launched.pid, tmp_path / "cp" / "one", any_process=True, leave_running=True)

        assert ask(port)["tcp"]
        assert list((tmp_path / "cp").iterdir()) == []


class TestFingerprints:
    def test_the_model_and_the_programs_have_fingerprints_and_are_not_saved(
        self, dumped: tuple[cria.Checkpoint, int, Launched], model: Path
    ) -> None:
        checkpoint, _, _ = dumped
        recorded = {file.path: file for file in checkpoint.manifest.fingerprints}

        assert recorded[str(model / "model.safetensors")].size_bytes == 1 << 20
        assert str(model / "config.json") in recorded
        assert os.path.realpath(sys.executable) in recorded
        assert any(path.endswith(".so") or ".so." in path for path in recorded)
        assert not any(file.path.startswith(str(model)) for file in checkpoint.manifest.saved_files)

    def test_one_error_names_every_file_that_differs_and_how(
        self, dumped: tuple[cria.Checkpoint, int, Launched], model: Path
    ) -> None:
        checkpoint, port, _ = dumped
        weights = model / "model.safetensors"
        weights.write_bytes(os.urandom(1 << 20))
        config = (model / "config.json").read_text()
        (model / "config.json").unlink()

        with pytest.raises(CheckpointMismatch) as caught:
            checkpoint.restore()
        with pytest.raises(CheckpointMismatch):
            checkpoint.restore(replicas=2)

        lines = (caught.value.details or "").splitlines()
        assert len(lines) == 2
        assert any("config.json is missing" in s and f"{len(config)} bytes" in s for s in lines)
        assert any("model.safetensors has other content" in s and "recorded" in s for s in lines)
        with pytest.raises(ConnectionRefusedError):
            ask(port)

    def test_a_model_that_was_copied_again_is_the_same(
        self, dumped: tuple[cria.Checkpoint, int, Launched], model: Path
    ) -> None:
        checkpoint, port, _ = dumped
        weights = model / "model.safetensors"
        content = weights.read_bytes()
        weights.unlink()
        weights.write_bytes(content)

        assert restored(checkpoint, port)["tcp"]

    def test_a_log_that_was_removed_does_not_matter(
        self, dumped: tuple[cria.Checkpoint, int, Launched]
    ) -> None:
        checkpoint, port, launched = dumped
        launched.log.unlink()

        assert restored(checkpoint, port)["tcp"]
        assert launched.log.exists()


class TestTemporaryFiles:
    """A program has open a temporary file, a file without a name and a log."""

    @pytest.fixture
    def holder(self, start: Start, tmp_path: Path) -> tuple[Launched, Path]:
        launched = start("temporary_files.py", tmp_path)
        return launched, tmp_path / "temporary"

    def content(self, pid: int, name: str) -> bytes:
        """Read a file through the descriptor that the program has of it."""
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(link).endswith(name):
                return link.read_bytes()
        raise AssertionError(f"{name} is not open")

    def test_a_restore_puts_back_what_is_missing(
        self, holder: tuple[Launched, Path], tmp_path: Path, ended_after: list[int]
    ) -> None:
        launched, temporary = holder
        checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
        launched.process.wait(timeout=60)
        assert temporary.exists(), "a file that another program may use is not removed"
        temporary.unlink()

        engine = checkpoint.restore()
        ended_after.append(engine.pid)

        [file] = [f for f in checkpoint.manifest.saved_files if f.path == str(temporary)]
        assert not file.owned
        assert temporary.read_bytes() == self.content(engine.pid, "/temporary") == b"temporary\n"
        assert self.content(engine.pid, "(deleted)") == b"nameless\n"

    def test_a_file_that_was_written_to_since_is_not_overwritten(
        self, holder: tuple[Launched, Path], tmp_path: Path, ended_after: list[int]
    ) -> None:
        launched, temporary = holder
        checkpoint = cria.dump(launched.pid, tmp_path / "checkpoint", any_process=True)
        launched.process.wait(timeout=60)
        temporary.write_bytes(b"written by another program")

        engine = checkpoint.restore()
        ended_after.append(engine.pid)

        assert temporary.read_bytes() == b"written by another program"
        assert self.content(engine.pid, "/temporary") == b"temporary\n"

    def test_a_clone_has_a_temporary_file_of_its_own(
        self, holder: tuple[Launched, Path], tmp_path: Path, ended_after: list[int]
    ) -> None:
        launched, temporary = holder
        checkpoint = cria.dump(
            launched.pid, tmp_path / "checkpoint", any_process=True, leave_running=True
        )

        engine = checkpoint.restore()
        ended_after.append(engine.pid)
        (Path(f"/proc/{engine.pid}/root") / str(temporary)[1:]).write_bytes(b"the clone's")

        assert temporary.read_bytes() == self.content(launched.pid, "/temporary") == b"temporary\n"
        assert self.content(engine.pid, "/temporary") == b"the clone's"


class TestDisks:
    def test_a_checkpoint_on_a_read_only_disk_is_restored_and_packed(
        self,
        dumped: tuple[cria.Checkpoint, int, Launched],
        mounted: Callable[..., Path],
        tmp_path: Path,
        ended_after: list[int],
    ) -> None:
        checkpoint, port, _ = dumped
        target = mounted("--bind", str(checkpoint.path))
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        read_only = cria.open_checkpoint(target)
        with pytest.raises(OSError, match="Read-only"):
            (target / "try").touch()

        assert restored(read_only, port)["tcp"]
        clone = read_only.restore(isolate="always")
        ended_after.append(clone.pid)
        assert ask(port)["tcp"]
        read_only.pack(tmp_path / "archive")

        assert read_only.verify()

    def test_a_full_disk_while_packing_leaves_nothing(
        self, dumped: tuple[cria.Checkpoint, int, Launched], mounted: Callable[..., Path]
    ) -> None:
        checkpoint, _, _ = dumped
        small = mounted("-t", "tmpfs", "-o", "size=200k", "tmpfs")

        with pytest.raises(NoSpace) as caught:
            pack(checkpoint, small / "archive")

        assert str(small / "archive") in caught.value.message
        assert list(small.iterdir()) == []

    def test_an_archive_that_does_not_fit_leaves_nothing(
        self,
        dumped: tuple[cria.Checkpoint, int, Launched],
        mounted: Callable[..., Path],
        tmp_path: Path,
    ) -> None:
        checkpoint, _, _ = dumped
        small = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
        pack(checkpoint, tmp_path / "archive")

        with pytest.raises(NoSpace):
            cria.unpack(tmp_path / "archive", small / "checkpoint")

        assert list(small.iterdir()) == []


def test_a_checkpoint_from_before_digests_is_still_restored(
    dumped: tuple[cria.Checkpoint, int, Launched],
) -> None:
    checkpoint, port, _ = dumped
    old = checkpoint.manifest
    parts = tuple(msgspec.structs.replace(part, digest="") for part in old.parts)
    path = checkpoint.path / MANIFEST
    path.unlink()
    manifest.write(msgspec.structs.replace(old, parts=parts, fingerprints=()), path)

    assert restored(cria.open_checkpoint(checkpoint.path), port)["tcp"]
