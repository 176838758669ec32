"""Small facts of an image directory: how it was dumped, whose processes it holds, how long CRIU took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from cria.criu.images import framing
from cria.criu.images.framing import Image
from cria.criu.messages import load
from cria.errors import CheckpointDamaged

LockMethod = Literal["iptables", "nftables", "skip"]

# Source: enum NETWORK_LOCK_METHOD in criu/include/cr_options.h. The image holds this inner number, one
# less than the one of rpc.proto (seen with CRIU 4.3: nftables is stored as 1, skip as 2).
_LOCKS: dict[int, LockMethod] = {0: "iptables", 1: "nftables", 2: "skip"}
_REMAPS: dict[int, Literal["linked", "ghost", "procfs"]] = {0: "linked", 1: "ghost", 2: "procfs"}


class ImageInventory(msgspec.Struct, frozen=True, kw_only=True):
    """How the images were made: `run_id` names CRIU's nftables table, `img_version` its format."""

    img_version: int
    network_lock: LockMethod
    run_id: str
    tcp_close: bool


class ImageProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the image; `threads` are all its TIDs, its own PID among them."""

    pid: int
    parent: int
    group: int
    session: int
    threads: tuple[int, ...]


class DumpStats(msgspec.Struct, frozen=True, kw_only=True):
    """What CRIU measured of a dump: seconds and pages of 4 KiB."""

    freezing_seconds: float
    frozen_seconds: float
    memdump_seconds: float
    memwrite_seconds: float
    pages_scanned: int
    pages_written: int
    shared_pages_written: int


class RestoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """What CRIU measured of a restore: seconds and pages of 4 KiB."""

    forking_seconds: float
    restore_seconds: float
    pages_restored: int


class Remap(msgspec.Struct, frozen=True, kw_only=True):
    """A file that had no path at the dump: `file_id` is found again under the file `remap_id`."""

    file_id: int
    remap_id: int
    kind: Literal["linked", "ghost", "procfs"]


def inventory(images_dir: Path, criu_binary: Path | None = None) -> ImageInventory:
    """What inventory.img says of the dump as a whole."""
    raw = framing.first(images_dir / "inventory.img", framing.INVENTORY)
    entry = load("inventory", criu_binary).inventory_entry.FromString(raw)
    return ImageInventory(
        img_version=entry.img_version,
        network_lock=_LOCKS.get(entry.network_lock_method, "iptables"),
        run_id=entry.dump_criu_run_id,
        tcp_close=entry.tcp_close,
    )


def processes(images_dir: Path, criu_binary: Path | None = None) -> tuple[ImageProcess, ...]:
    """Every process of pstree.img, parents before children."""
    parse = load("pstree", criu_binary).pstree_entry.FromString
    raw = framing.read(images_dir / "pstree.img", framing.PSTREE)
    return tuple(_process(parse(entry)) for entry in raw.entries)


def remaps(images_dir: Path, criu_binary: Path | None = None) -> tuple[Remap, ...]:
    """The entries of remap-fpath.img; an image directory without that file has none."""
    path = images_dir / "remap-fpath.img"
    if not path.exists():
        return ()
    return remaps_of(framing.read(path, framing.REMAP_FPATH), criu_binary)


def remaps_of(image: Image, criu_binary: Path | None = None) -> tuple[Remap, ...]:
    """The entries of a remap-fpath.img that was read already."""
    parse = load("remap_file_path", criu_binary).remap_file_path_entry.FromString
    found = (parse(entry) for entry in image.entries)
    return tuple(
        Remap(file_id=entry.orig_id, remap_id=entry.remap_id, kind=_REMAPS[entry.remap_type])
        for entry in found
    )


def dump_stats(images_dir: Path, criu_binary: Path | None = None) -> DumpStats:
    """What stats-dump in `images_dir` says."""
    entry = _stats(images_dir / "stats-dump", criu_binary).dump
    return DumpStats(
        freezing_seconds=entry.freezing_time / 1e6,
        frozen_seconds=entry.frozen_time / 1e6,
        memdump_seconds=entry.memdump_time / 1e6,
        memwrite_seconds=entry.memwrite_time / 1e6,
        pages_scanned=entry.pages_scanned,
        pages_written=entry.pages_written,
        shared_pages_written=entry.shpages_written,
    )


def restore_stats(directory: Path, criu_binary: Path | None = None) -> RestoreStats:
    """What stats-restore in `directory` (CRIU's work directory) says."""
    entry = _stats(directory / "stats-restore", criu_binary).restore
    return RestoreStats(
        forking_seconds=entry.forking_time / 1e6,
        restore_seconds=entry.restore_time / 1e6,
        pages_restored=entry.pages_restored,
    )


def unsent_or_unread(images_dir: Path, inode: int, criu_binary: Path | None = None) -> int:
    """Bytes that stand in the queues of the connected TCP socket `inode` of the image."""
    raw = framing.first(images_dir / f"tcp-stream-{inode:x}.img", framing.TCP_STREAM)
    entry = load("tcp_stream", criu_binary).tcp_stream_entry.FromString(raw)
    return int(entry.inq_len + entry.outq_len)


def _process(entry: Any) -> ImageProcess:
    return ImageProcess(
        pid=entry.pid,
        parent=entry.ppid,
        group=entry.pgid,
        session=entry.sid,
        threads=tuple(entry.threads),
    )


def _stats(path: Path, criu_binary: Path | None) -> Any:
    raw = framing.first(path, framing.STATS)
    return load("stats", criu_binary).stats_entry.FromString(raw)


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
