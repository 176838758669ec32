"""Whose processes the images hold, and which of them has which file open: read from images in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cria.errors import CheckpointDamaged
from cria.images import framing
from cria.images.bindings import load

# By the number in core_entry.mtype, as containers call them. Source: criu/images/core.proto.
MACHINES = {
    1: "amd64",
    2: "arm",
    3: "arm64",
    4: "ppc64le",
    5: "s390x",
    6: "mips64le",
    7: "loong64",
    8: "riscv64",
}


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the images, as it is numbered inside them; `file_ids` are the files it has open."""

    pid: int
    parent: int
    name: str
    threads: int
    machine: str = ""
    file_ids: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"PID {self.pid} ({self.name})"


def holders(images: Mapping[str, bytes], criu: Path | None = None) -> tuple[Holder, ...]:
    """Every process of pstree.img, parents before children; `images` are whole files by their name.

    Raises CheckpointDamaged where one is not what it should be. Zombies have no files.
    """
    return tuple(_holder(images, entry, criu) for entry in _entries(images, "pstree", criu))


def _holder(images: Mapping[str, bytes], entry: Any, criu: Path | None) -> Holder:
    core = next(_entries(images, f"core-{entry.pid}", criu), None)
    return Holder(
        pid=entry.pid,
        parent=entry.ppid,
        name=core.tc.comm if core is not None else "",
        threads=len(entry.threads),
        machine=MACHINES.get(core.mtype, "") if core is not None else "",
        file_ids=_files(images, entry.pid, criu),
    )


def _files(images: Mapping[str, bytes], pid: int, criu: Path | None) -> frozenset[int]:
    ids = next(_entries(images, f"ids-{pid}", criu), None)
    if ids is None:
        return frozenset()
    return frozenset(entry.id for entry in _entries(images, f"fdinfo-{ids.files_id}", criu))


def _entries(images: Mapping[str, bytes], name: str, criu: Path | None) -> Iterator[Any]:
    """The messages of one image; none where there is no such image."""
    from google.protobuf.message import DecodeError

    data = images.get(f"{name}.img")
    if data is None:
        return
    module, message, magic = _KINDS[name.partition("-")[0]]
    parse = getattr(load(module, criu), message).FromString
    try:
        for entry in framing.parse(data, f"{name}.img", magic).entries:
            yield parse(entry)
    except DecodeError as error:
        raise CheckpointDamaged(
            f"{name}.img is not a whole CRIU image of its kind", details=str(error)
        ) from error


_KINDS = {
    "pstree": ("pstree", "pstree_entry", framing.PSTREE),
    "core": ("core", "core_entry", framing.CORE),
    "ids": ("core", "task_kobj_ids_entry", framing.IDS),
    "fdinfo": ("fdinfo", "fdinfo_entry", framing.FDINFO),
}
