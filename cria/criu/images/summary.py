"""What the small images say: how they were made, of which processes, and which files had no path."""

from __future__ import annotations

from typing import Literal

import msgspec

from cria.criu.images.schema import InventoryEntry, PstreeEntry, RemapEntry

LockMethod = Literal["iptables", "nftables", "skip"]

# Source: enum NETWORK_LOCK_METHOD in criu/include/cr_options.h. The image holds this inner number, one
# less than the one of rpc.proto (seen with CRIU 4.3: nftables is stored as 1, skip as 2).
_LOCKS: dict[int, LockMethod] = {0: "iptables", 1: "nftables", 2: "skip"}
_REMAPS: dict[int, Literal["linked", "ghost", "procfs"]] = {0: "linked", 1: "ghost", 2: "procfs"}

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


class Remap(msgspec.Struct, frozen=True, kw_only=True):
    """A file that had no path at the dump: `file_id` is found again under the file `remap_id`."""

    file_id: int
    remap_id: int
    kind: Literal["linked", "ghost", "procfs"]


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


def inventory(entry: InventoryEntry) -> ImageInventory:
    """Read the entry of inventory.img."""
    return ImageInventory(
        img_version=entry.img_version,
        network_lock=_LOCKS.get(entry.network_lock_method, "iptables"),
        run_id=entry.dump_criu_run_id,
        tcp_close=entry.tcp_close,
    )


def process(entry: PstreeEntry) -> ImageProcess:
    """Read one entry of pstree.img."""
    return ImageProcess(
        pid=entry.pid,
        parent=entry.ppid,
        group=entry.pgid,
        session=entry.sid,
        threads=tuple(entry.threads),
    )


def remap(entry: RemapEntry) -> Remap:
    """Read one entry of remap-fpath.img."""
    return Remap(file_id=entry.orig_id, remap_id=entry.remap_id, kind=_REMAPS[entry.remap_type])
