"""Where things lie inside a checkpoint, and how one comes to be: staged beside its place, renamed when whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cria.errors import CheckpointExists, NotWritable
from cria.model.manifest import DUMP_LOG, IMAGES, MANIFEST, MEMORY, SAVED_FILES

NOT_PARTS = frozenset({MANIFEST, DUMP_LOG, "stats-dump"})

PRIVATE = 0o700  # a checkpoint holds the engine's memory, so whatever secrets it knew


def stage(target: Path) -> Path:
    """Make an empty private directory beside `target` that `publish` can rename onto it.

    Raises CheckpointExists or NotWritable.
    """
    if os.path.lexists(target):
        raise CheckpointExists(
            f"{target} exists already",
            remedy=f"choose another directory, or remove it: rm -r {target}",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
        staged = target.parent / f".{target.name}.{os.urandom(4).hex()}.partial"
        staged.mkdir(mode=PRIVATE)
        (staged / IMAGES).mkdir(mode=PRIVATE)
        (staged / SAVED_FILES).mkdir(mode=PRIVATE)
    except OSError as error:
        raise NotWritable(
            f"cannot write a checkpoint at {target}",
            details=f"{error.strerror}: {error.filename}",
            remedy="choose a directory you may write to with -o",
        ) from error
    return staged


def publish(staged: Path, target: Path) -> None:
    """Give a whole checkpoint its name. After a crash there is either all of it or none of it."""
    for path in (staged / MEMORY, staged / SAVED_FILES, staged / IMAGES, staged):
        if path.is_dir():
            _sync(path)
    try:
        staged.rename(target)
    except OSError as error:
        raise CheckpointExists(
            f"{target} came into being while the engine was dumped",
            details=error.strerror,
            remedy="choose another directory",
        ) from error
    _sync(target.parent)


def discard(staged: Path) -> None:
    """Remove what was staged and not published."""
    shutil.rmtree(staged, ignore_errors=True)


def parts(directory: Path) -> list[str]:
    """The names of a checkpoint's parts below `directory`: all but what CRIU writes to the end."""
    return sorted(
        os.path.relpath(os.path.join(place, name), directory)  # noqa: PTH118
        for place, _, names in os.walk(directory)
        for name in names
        if name not in NOT_PARTS
    )


def size_bytes(directory: Path) -> int:
    """The bytes that the files below `directory` take on disk: sparse files count as stored."""
    return sum(p.lstat().st_blocks * 512 for p in directory.rglob("*") if p.is_file())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StagedCheckpoint:
    """A checkpoint that is being written: in a hidden directory beside `output`, then renamed to it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._directory: Path | None = None
        self._published = False

    def create(self) -> None:
        """Make the hidden directory. Raises CheckpointExists or NotWritable."""
        self._directory = stage(self.output)

    @property
    def exists(self) -> bool:
        """Whether `create` has made the directory, under whichever of its two names."""
        return self._directory is not None

    @property
    def published(self) -> bool:
        return self._published

    @property
    def path(self) -> Path:
        """Where the checkpoint lies now."""
        return self.output if self._published or self._directory is None else self._directory

    @property
    def images(self) -> Path:
        return self.path / IMAGES

    def publish(self) -> None:
        """Rename the whole checkpoint to `output`. Raises CheckpointExists."""
        directory = self.path
        try:
            publish(directory, self.output)
        finally:  # the rename may have worked although what follows it failed
            self._published = not directory.exists()

    def withdraw(self) -> None:
        """Take `output` away from a published checkpoint again."""
        if self._published and self._directory is not None:
            self.output.rename(self._directory)
            self._published = False

    def discard(self) -> None:
        """Remove what was staged and is not published."""
        if self._directory is not None:
            discard(self._directory)
