"""What the steps of one restore know and hand on."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cria.operation import Stopwatch

if TYPE_CHECKING:
    from cria.checkpoint.handle import Checkpoint
    from cria.criu.link_remap_lock import LinkRemapLock
    from cria.events import Listener
    from cria.isolation.forwarded_ports import Forward
    from cria.isolation.namespaces import Host, OwnNamespaces
    from cria.memory.shared.backing_store import Backing
    from cria.memory.shared.directory import SharedMemory
    from cria.model.inventory import Endpoint
    from cria.model.manifest import CarriedFile
    from cria.network.plan import PortPlan
    from cria.operations.hooks import Hooks
    from cria.requests import Hook, Isolate, RestoreRequest


@dataclass(kw_only=True, eq=False, repr=False)
class Source:
    """What every restore begins with; the clones of a fleet have all of it from the fleet."""

    source: Checkpoint | str | os.PathLike[str]
    listener: Listener | None
    checkpoint: Checkpoint = field(init=False)
    client: Any = None
    wish: Any
    wait_seconds: float
    isolate: Isolate
    policies: dict[str, Any] = field(default_factory=dict)
    wants_canary: bool = True
    wants_hooks: tuple[Hook, ...] = ()
    hook_seconds: float = 30.0
    wants_lazy: bool = False
    wants_gpus: dict[str, str] = field(default_factory=dict)
    gpu_map: dict[str, str] = field(default_factory=dict)
    gpu_seconds: float = 300.0
    share_memory: bool = False
    share_in: Path | None = None
    backing: Backing | None = None
    shared: SharedMemory | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class Restore(Source):
    """What the steps of one restore know and hand on."""

    clone: int = 0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    plan: PortPlan = field(init=False)
    reservation: Any = None
    view: Path | None = None
    placed: tuple[CarriedFile, ...] = ()
    link_remap_lock: LinkRemapLock | None = None
    page_server: Any = None
    conversation: Any = None
    locks: ExitStack = field(default_factory=ExitStack)
    place: Host | OwnNamespaces | None = None
    unix_names: dict[int, bytes] = field(default_factory=dict)
    forwards: list[Forward] = field(default_factory=list)
    hooks: Hooks | None = None
    inner_root: int = 0
    root: int = 0
    url: str | None = None

    @classmethod
    def of(cls, request: RestoreRequest) -> Restore:
        return cls(**fields_of(request), listener=request.listener)

    def reached_at(self, old: Endpoint) -> Endpoint:
        """Where on this host a listener of the checkpoint is reached now."""
        for forward in self.forwards:
            if forward.inner == old:
                return forward.outer
        return next(move.new for move in self.plan.listeners if move.old == old)

    def netns(self) -> Path | None:
        """The engine's network namespace, None where it shares cria's."""
        return self.place.netns if self.place is not None else None

    def tag(self) -> str:
        """What tells this clone's files from those of others: the port its clients know, or its first."""
        if self.forwards:
            return str(self.forwards[0].outer.port)
        published = [move for move in self.plan.listeners if move.role == "HTTP API"]
        named = published or self.plan.listeners
        return str(named[0].new.port) if named else f"{os.getpid()}-{id(self):x}"


def fields_of(request: RestoreRequest) -> dict[str, Any]:
    return {
        "source": request.checkpoint,
        "wish": request.ports,
        "wait_seconds": request.wait_seconds,
        "isolate": request.isolate,
        "policies": {"outside": request.outside, "clients": request.clients},
        "wants_canary": request.canary,
        "wants_lazy": request.lazy,
        "wants_gpus": request.gpus or {},
        "gpu_seconds": request.gpu_seconds,
        "share_memory": request.shares_memory,
        "share_in": Path(request.share_in) if request.share_in is not None else None,
        "wants_hooks": tuple(request.hooks),
        "hook_seconds": request.hook_seconds,
    }
