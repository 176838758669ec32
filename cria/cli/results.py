"""The JSON documents that verbs end with; those of inventories, archives and checks have modules of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cria.engine.handle import Engine
from cria.events import Timings
from cria.memory.shared.directory import SharedMemory

if TYPE_CHECKING:
    from cria.network.plan import PortPlan


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """`cria run --detach --json`: an engine that is healthy."""

    url: str
    pid: int
    log: str


class Dumped(msgspec.Struct, frozen=True, kw_only=True):
    """`cria dump --json`: the directory of the checkpoint, and the `bytes` that it takes on the disk."""

    checkpoint: str
    bytes: int
    processes: int
    timings: Timings


class WouldDump(msgspec.Struct, frozen=True, kw_only=True):
    """`cria dump --dry-run --json`: the PID of the engine's root process, and the checkpoint's directory."""

    engine: int
    checkpoint: str
    would_dump: bool = True


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """`cria restore --json`: the engines; `ports` maps each API port of the checkpoint to its new one.

    If a single engine was restored, its fields are also at the top.
    """

    engines: tuple[Engine, ...]
    pid: int | None = None
    url: str | None = None
    ports: dict[int, int] = {}
    ports_moved: int = 0
    timings: Timings | None = None
    shared_memory: SharedMemory | None = None

    @classmethod
    def of(cls, engines: tuple[Engine, ...]) -> Restored:
        if len(engines) != 1:
            return cls(engines=engines)
        (engine,) = engines
        return cls(
            engines=engines,
            pid=engine.pid,
            url=engine.url,
            ports=engine.ports,
            ports_moved=engine.ports_moved,
            timings=engine.timings,
            shared_memory=engine.shared_memory,
        )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A port plan: each old port with its new one, and each socket with the reason for its new address."""

    ports: dict[str, int]
    sockets: list[dict[str, Any]]


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """`cria restore --dry-run --json`: a port plan for each clone. A single plan is also at the top."""

    clones: tuple[Plan, ...]
    ports: dict[str, int] = {}
    sockets: list[dict[str, Any]] = []

    @classmethod
    def of(cls, plans: tuple[PortPlan, ...]) -> Planned:
        clones = tuple(msgspec.convert(plan.to_json(), Plan) for plan in plans)
        if len(clones) != 1:
            return cls(clones=clones)
        return cls(clones=clones, ports=clones[0].ports, sockets=clones[0].sockets)


class Unshared(msgspec.Struct, frozen=True, kw_only=True):
    """`cria share --remove --json`: the `bytes` that were freed on the disk."""

    checkpoint: str
    bytes: int


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """`cria stop --json`: the PID of the root process that ended."""

    stopped: int


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """`cria verify --json`: the `bytes` that were read and compared with their digests."""

    checkpoint: str
    parts: int
    bytes: int
    whole: bool = True


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """`cria pack --json`: the archive and its size."""

    archive: str
    bytes: int


class Unpacked(msgspec.Struct, frozen=True, kw_only=True):
    """`cria unpack --json`: the checkpoint and the number of its parts."""

    checkpoint: str
    parts: int


class NodeChange(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a node: `action` is create, change or remove; `diff` is a unified diff."""

    path: str
    action: str
    diff: str


class NodeChanged(msgspec.Struct, frozen=True, kw_only=True):
    """`cria kubernetes node install|remove --json`: what changed, or with `dry_run` what would change."""

    root: str
    changes: tuple[NodeChange, ...]
    dry_run: bool


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an error. The exit status depends on the code."""

    code: str
    message: str
    details: str | None
    remedy: str | None
    docs: str | None
    log: str | None


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """What every verb prints with --json when it fails."""

    error: Error
