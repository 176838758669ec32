"""A checkpoint on disk, as a caller of the API holds it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cria.criu import program
from cria.criu.images.directory import CriuImages
from cria.errors import CheckpointDamaged
from cria.model.manifest import IMAGES, MANIFEST, MEMORY

if TYPE_CHECKING:
    from cria.events import Listener, Timings
    from cria.model.manifest import Manifest, Part


class Checkpoint:
    """One published checkpoint. It is never changed; `timings` are those of the dump that made it."""

    def __init__(self, path: Path, manifest: Manifest, timings: Timings | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.timings = timings or manifest.timings

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the checkpoint at `path` and see that no part of it is missing or cut short.

        Raises CheckpointMissing, CheckpointDamaged or CheckpointNewer.
        """
        from cria.model import manifest

        place = Path(path).absolute()
        checkpoint = cls(place, manifest.read(place / MANIFEST))
        problems = list(checkpoint._incomplete_parts())
        if problems:
            raise CheckpointDamaged(f"{place} is not whole", details="\n".join(problems[:8]))
        return checkpoint

    @property
    def images(self) -> Path:
        return self.path / IMAGES

    @cached_property
    def criu_images(self) -> CriuImages:
        """The images in `images`, each read once. Raises CriuMissing where there is no CRIU to read them with."""
        return CriuImages(self.images, program.find())

    @property
    def size_bytes(self) -> int:
        """What the checkpoint takes on disk."""
        from cria.checkpoint import layout

        return layout.size_bytes(self.path)

    def verify(self, listener: Listener | None = None) -> int:
        """Read every part and compare it with its digest. Returns the bytes that were compared.

        What the manifest itself says is taken as true. Raises CheckpointDamaged, which names every
        part that is damaged, missing or too many.
        """
        from cria.operation import Step, run_steps

        step = "compare-digests"
        run_steps(
            "verify",
            (
                Step(
                    step,
                    "compare parts with their digests",
                    lambda _: self._compare(self.manifest.parts, listener, step),
                ),
            ),
            None,
            listener=listener,
        )
        return sum(part.size_bytes for part in self.manifest.parts)

    def check_small_parts(self) -> int:
        """The same for the parts up to 1 MiB, so for all but memory: a restore has time for these."""
        from cria.system.digests import SMALL

        return self._compare([part for part in self.manifest.parts if part.size_bytes <= SMALL])

    def _compare(
        self, parts: Collection[Part], listener: Listener | None = None, step: str = ""
    ) -> int:
        from cria.checkpoint import layout
        from cria.events import progress
        from cria.system import digests

        total = sum(part.size_bytes for part in parts)
        problems = list(
            map(str, digests.damaged(self.path, parts, progress(listener, step, total)))
        )
        declared = {part.path for part in self.manifest.parts}
        problems += [
            f"{name} is too many" for name in layout.parts(self.path) if name not in declared
        ]
        if problems:
            raise CheckpointDamaged(
                f"{self.path} was changed since its dump", details="\n".join(problems)
            )
        return total

    def memory_bytes(self) -> int:
        """About what one restored engine takes: the memory pages in the images."""
        from cria.memory import compressed

        return compressed.size_bytes(self.images, self.path / MEMORY)

    def _incomplete_parts(self) -> Iterator[str]:
        for part in self.manifest.parts:
            try:
                size = (self.path / part.path).lstat().st_size
            except FileNotFoundError:
                yield f"{part.path} is missing"
                continue
            if size != part.size_bytes:
                yield f"{part.path} has {size} bytes, not {part.size_bytes}"

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r})"
