"""What the steps of one dump hand on to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cria.checkpoint.layout import StagedCheckpoint
from cria.checkpoint.saved_files import Original
from cria.criu.client import Client, Conversation
from cria.criu.images.directory import CriuImages
from cria.criu.link_remap_lock import LinkRemapLock
from cria.engine.control.quiesce import QuiesceSession
from cria.errors import GpuLost
from cria.events import Warned, nobody
from cria.gpu.memory import GpuMemory
from cria.model.inventory import Inventory
from cria.model.manifest import (
    Canary,
    DumpOptions,
    Fingerprint,
    GpuState,
    Manifest,
    Part,
)
from cria.operation import StepState, Stopwatch
from cria.operations.hooks import Hooks
from cria.requests import DumpRequest


@dataclass(eq=False, repr=False)
class DumpState(StepState):
    """The request, and what the steps have made of it so far. A field without a default is set by a step."""

    request: DumpRequest
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    staged: StagedCheckpoint = field(init=False)
    hooks: Hooks = field(init=False)

    # The engine. `root` is the PID of its root process; `files_root` is where its mount namespace's root
    # is seen from here.
    root: int = field(init=False)
    lock: int = field(init=False)
    inventory: Inventory = field(init=False)
    quiesce: QuiesceSession = field(init=False)
    canary: Canary | None = None
    no_canary: str | None = None
    files_root: Path = Path("/")
    stores: tuple[str, ...] = ()
    temporary_files: tuple[str, ...] = ()
    model_files: tuple[str, ...] = ()

    # CRIU.
    client: Client = field(init=False)
    criu_version: str = field(init=False)
    options: DumpOptions = field(init=False)
    link_remap_lock: LinkRemapLock | None = None
    conversation: Conversation = field(init=False)
    images: CriuImages = field(init=False)

    # GPUs. `lost` is set where their memory could not be given back to an engine that runs on.
    gpu_memory: GpuMemory = field(init=False)
    gpu_state: GpuState | None = None
    lost: GpuLost | None = None

    # The checkpoint.
    saved_files: tuple[Original, ...] = ()
    fingerprints: tuple[Fingerprint, ...] = ()
    parts: tuple[Part, ...] = ()
    manifest: Manifest = field(init=False)

    def __post_init__(self) -> None:
        self.staged = StagedCheckpoint(Path(self.request.output).absolute())

    @property
    def uids(self) -> frozenset[int]:
        """The users of the engine's processes."""
        return frozenset(process.uid for process in self.inventory.processes)

    def warn(self, message: str) -> None:
        (self.request.listener or nobody)(Warned(message=message))
