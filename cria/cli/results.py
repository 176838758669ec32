"""The JSON documents that verbs end with; cria.cli.schemas knows all of them, also those that are elsewhere."""

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
    """`cria dump --json`: `checkpoint` is its directory, `bytes` what it takes on disk."""

    checkpoint: str
    bytes: int
    processes: int
    timings: Timings


class WouldDump(msgspec.Struct, frozen=True, kw_only=True):
    """`cria dump --dry-run --json`: the PID of the engine's root, and where it would go."""

    engine: int
    checkpoint: str
    would_dump: bool = True


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """`cria restore --json`: `ports` maps published ports to where they are now.

    Where one engine was restored, as mostly, its facts stand at the top as well.
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
        (one,) = engines
        return cls(
            engines=engines,
            pid=one.pid,
            url=one.url,
            ports=one.ports,
            ports_moved=one.ports_moved,
            timings=one.timings,
            shared_memory=one.shared_memory,
        )


class Unshared(msgspec.Struct, frozen=True, kw_only=True):
    """`cria share --remove --json`: `bytes` were freed."""

    checkpoint: str
    bytes: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A port plan: old port to new, and every socket with its reason."""

    ports: dict[str, int]
    sockets: list[dict[str, Any]]


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """`cria restore --dry-run --json`: a plan for each clone; where it is one, it stands at the top too."""

    clones: tuple[Plan, ...]
    ports: dict[str, int] = {}
    sockets: list[dict[str, Any]] = []

    @classmethod
    def of(cls, plans: tuple[PortPlan, ...]) -> Planned:
        clones = tuple(msgspec.convert(plan.to_json(), Plan) for plan in plans)
        if len(clones) != 1:
            return cls(clones=clones)
        return cls(clones=clones, ports=clones[0].ports, sockets=clones[0].sockets)


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """`cria verify --json`: `bytes` were read and compared with their digests."""

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


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """`cria stop --json`: the PID of the root that ended."""

    stopped: int


class NodeChange(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a node: `action` is create, change or remove, `diff` a unified diff."""

    path: str
    action: str
    diff: str


class NodeChanged(msgspec.Struct, frozen=True, kw_only=True):
    """`cria kubernetes node install|remove --json`: with `dry_run` it is what would change."""

    root: str
    changes: tuple[NodeChange, ...]
    dry_run: bool


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an error; the exit status goes with the code."""

    code: str
    message: str
    details: str | None
    remedy: str | None
    docs: str | None
    log: str | None


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """What every verb prints with --json when it fails."""

    error: Error
