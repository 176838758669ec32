"""Carry a port plan into an image directory: a private view of it with a files.img of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cria.errors import NotWritable
from cria.images import files, framing
from cria.images.files import InetEdit
from cria.ports.moves import Move, PortPlan


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
    edits = {move.id: _edit(move) for move in plan.changes}
    changed = files.edited(image, inet=edits, unix=unix, criu_binary=criu_binary)
    if out is not None and not (out / files.NAME).exists():
        private_view(images_dir, out)
    target = (out or images_dir) / files.NAME
    try:
        framing.write(target, changed)
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
        for image in sorted(images_dir.resolve().iterdir()):
            if image.suffix == ".img" or image.name == "parent":
                (at / image.name).symlink_to(image)
    except OSError as error:
        raise NotWritable(f"{at} cannot hold a view of {images_dir}", details=str(error)) from error
    return at


def _edit(move: Move) -> InetEdit:
    old, new, old_peer, new_peer = move.old, move.new, move.old_peer, move.new_peer
    ports = (old.port, old_peer.port if old_peer else 0)
    if move.closes:
        return InetEdit(ports=ports, close=True)
    peer_moves = (
        new_peer is not None and old_peer is not None and new_peer.address != old_peer.address
    )
    return InetEdit(
        ports=ports,
        local_port=new.port,
        local_address=new.address if new.address != old.address else None,
        peer_port=new_peer.port if new_peer else None,
        peer_address=new_peer.address if new_peer and peer_moves else None,
    )
