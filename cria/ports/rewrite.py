"""Carry a port plan into an image directory: a private view of it with a files.img of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cria.errors import NotWritable
from cria.images import files, framing
from cria.ports.moves import PortPlan


def rewrite(
    images_dir: Path,
    plan: PortPlan,
    out: Path | None = None,
    *,
    unix: Mapping[int, bytes] | None = None,
    criu_binary: Path | None = None,
) -> Path:
    """Put the endpoints of `plan` into files.img and return its path.

    It is written to the directory `out`, which becomes a private view of `images_dir` where it is none
    yet; without `out` the file is replaced in place. `unix` gives new names to unix sockets by file ID.
    Raises CheckpointMissing, CheckpointDamaged, or CheckpointMismatch for the plan of another image.
    """
    image = files.read(images_dir)
    moves = {move.id: move for move in plan.moves if move.changes}
    changed = files.edited(image, inet=moves, unix=unix, criu_binary=criu_binary)
    if out is not None and not (out / files.NAME).exists():
        private_view(images_dir, out)
    target = (out or images_dir) / files.NAME
    try:
        framing.write(target, changed, durable=out is None)
    except OSError as error:
        raise NotWritable(f"{target} cannot be written", details=str(error)) from error
    return target


def private_view(images_dir: Path, at: Path) -> Path:
    """Make `at` a directory of links to the images in `images_dir`, and return it.

    files.img is linked like the others: `rewrite` replaces the link and leaves the original alone.
    Logs and statistics are left out, for CRIU would write through their links.
    """
    try:
        at.mkdir(parents=True, exist_ok=True)
        there = images_dir.resolve()
        for name in os.listdir(there):  # noqa: PTH208 - a hundred of them, before every restore
            if name.endswith(".img") or name == "parent":
                os.symlink(f"{there}/{name}", f"{at}/{name}")  # noqa: PTH211
    except OSError as error:
        raise NotWritable(f"{at} cannot hold a view of {images_dir}", details=str(error)) from error
    return at
