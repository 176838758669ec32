"""What the steps of one restore hand on to each other."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cria.checkpoint.handle import Checkpoint
from cria.checkpoint.saved_files import Placed
from cria.criu.client import Client, Conversation
from cria.criu.link_remap_lock import LinkRemapLock
from cria.events import Listener, Warned, nobody
from cria.isolation.forwarded_ports import ForwardedPort
from cria.isolation.namespaces import CloneNamespaces, HostNamespaces
from cria.model.socket import Endpoint
from cria.network.plan import PortPlan
from cria.network.reservation import Reservation
from cria.operation import StepState, Stopwatch
from cria.requests import RestoreRequest
from cria.system.locks import HostLock

if TYPE_CHECKING:  # the optional parts: a restore that needs none does not wait for their import
    from cria.memory.lazy.client import PageServerClient
    from cria.memory.shared.backing_store import BackingStore
    from cria.memory.shared.directory import SharedMemory
    from cria.operations.hooks import Hooks


@dataclass(eq=False, repr=False)
class OpenedState(StepState):
    """The request and the opened checkpoint: what the clones of one restore have in common."""

    request: RestoreRequest
    checkpoint: Checkpoint = field(init=False)
    client: Client = field(init=False)
    gpu_map: dict[str, str] = field(default_factory=dict)
    backing_store: BackingStore | None = None
    shared_memory: SharedMemory | None = None

    @property
    def listener(self) -> Listener:
        return self.request.listener or nobody


@dataclass(eq=False, repr=False)
class RestoreState(OpenedState):
    """One engine that is being restored; `clone` numbers the clones of one restore from 0."""

    clone: int = 0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    hooks: Hooks = field(init=False)

    # Ports. The reservation is None where the engine gets a network namespace of its own.
    plan: PortPlan = field(init=False)
    reservation: Reservation | None = None
    forwarded_ports: list[ForwardedPort] = field(default_factory=list)
    connection_locks: ExitStack = field(default_factory=ExitStack)

    # Where the engine lives, and what it finds there.
    namespaces: HostNamespaces | CloneNamespaces = field(init=False)
    unix_names: dict[int, bytes] = field(default_factory=dict)
    view: Path = field(init=False)
    placed_files: list[Placed] = field(default_factory=list)
    link_remap_lock: LinkRemapLock | None = None
    host_lock: HostLock | None = None  # held while an engine takes PIDs and paths of the host

    # The processes. `root` is the PID of the root process on this host, `inner_root` in its namespace;
    # both are 0 until CRIU has made it.
    page_server: PageServerClient = field(init=False)
    conversation: Conversation = field(init=False)
    inner_root: int = 0
    root: int = 0
    url: str | None = None

    @classmethod
    def clone_of(cls, opened: OpenedState, request: RestoreRequest, number: int) -> RestoreState:
        """Return the state of clone `number`, with all that `opened` has made ready."""
        state = cls(
            request,
            gpu_map=opened.gpu_map,
            backing_store=opened.backing_store,
            shared_memory=opened.shared_memory,
            clone=number,
        )
        state.checkpoint, state.client = opened.checkpoint, opened.client
        return state

    def warn(self, message: str) -> None:
        self.listener(Warned(message=message))

    def host_endpoint(self, old: Endpoint) -> Endpoint:
        """Return where a listener of the checkpoint is reached on this host now."""
        for port in self.forwarded_ports:
            if port.inner == old:
                return port.outer
        return next(move.new for move in self.plan.listeners if move.old == old)

    @property
    def network_namespace(self) -> Path | None:
        """The engine's network namespace; None where it shares cria's."""
        return self.namespaces.netns if self.has("namespaces") else None

    @property
    def own_namespaces(self) -> CloneNamespaces | None:
        """The namespaces that were made for the engine; None where it lives in the host's."""
        return self.namespaces if isinstance(self.namespaces, CloneNamespaces) else None

    @property
    def tag(self) -> str:
        """What tells this clone's files from those of others: its API port, or its first port."""
        if self.forwarded_ports:
            return str(self.forwarded_ports[0].outer.port)
        api = [move for move in self.plan.listeners if move.role == "HTTP API"]
        named = api or self.plan.listeners
        return str(named[0].new.port) if named else f"{os.getpid()}-{id(self):x}"
