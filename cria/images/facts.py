"""Small facts of an image directory: how it was dumped, whose processes it holds, how long CRIU took."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from cria.images import framing
from cria.images.bindings import load
from cria.images.framing import Image

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
