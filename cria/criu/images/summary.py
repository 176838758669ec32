"""What the small images say: how the dump was made, and of which processes."""

from __future__ import annotations

from typing import Literal

import msgspec

from cria.criu.images.schema import InventoryEntry, PstreeEntry

LockMethod = Literal["iptables", "nftables", "skip"]

# Source: enum NETWORK_LOCK_METHOD in criu/include/cr_options.h, of which criu/image.c stores the number. The
# numbers in rpc.proto are greater by one.
_LOCKS: dict[int, LockMethod] = {0: "iptables", 1: "nftables", 2: "skip"}

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
    """How the images were made; CRIU's nftables table is named after `run_id`."""

    network_lock: LockMethod
    run_id: str
    tcp_close: bool


class ImageProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the images; `threads` are all its TIDs, with its PID among them."""

    pid: int
    threads: tuple[int, ...]


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the images with its PID at the dump; `file_ids` are the files that it has open."""

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
        network_lock=_LOCKS.get(entry.network_lock_method, "iptables"),
        run_id=entry.dump_criu_run_id,
        tcp_close=entry.tcp_close,
    )


def process(entry: PstreeEntry) -> ImageProcess:
    """Read one entry of pstree.img."""
    return ImageProcess(pid=entry.pid, threads=tuple(entry.threads))
