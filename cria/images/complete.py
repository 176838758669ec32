"""See that CRIU's images hold what the engine held."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cria.errors import DumpIncomplete
from cria.images import files
from cria.images.framing import Image
from cria.inventory import Socket


def check(image: Image, listeners: Iterable[Socket], criu: Path) -> None:
    """Raise DumpIncomplete, naming each of `listeners` that files.img lacks."""
    stored = {socket.inode for socket in files.inet_sockets(image, criu)}
    missing = [each for each in listeners if each.inode not in stored]
    if missing:
        raise DumpIncomplete(
            "CRIU left listeners out of the checkpoint",
            details="\n".join(f"{each.local} ({each.role.name})" for each in missing),
            remedy="try again; if it stays, please report it with the log",
        )
