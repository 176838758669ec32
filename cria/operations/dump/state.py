"""What the steps of one dump know and hand on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cria.operation import Stopwatch

if TYPE_CHECKING:
    from cria.criu.link_remap_lock import LinkRemapLock
    from cria.engine.control.quiesce import QuiesceSession
    from cria.errors import GpuLost
    from cria.events import Listener
    from cria.gpu.memory import GpuMemory
    from cria.model.inventory import Inventory
    from cria.model.manifest import (
        CarriedFile,
        DumpOptions,
        GpuState,
        Inflight,
        Manifest,
        Part,
        RecordedFile,
        Weights,
    )
    from cria.operations.hooks import Hooks
    from cria.requests import DumpRequest, Hook


@dataclass(kw_only=True, eq=False, repr=False)
class Dump:
    """What the steps of one dump know and hand on."""

    target: int | None
    port: int | None
    output: Path
    leave_running: bool = False
    any_process: bool = False
    skip_in_flight: bool = False
    compress: bool = False
    direct_io: bool = False
    wants_canary: bool = True
    inflight: Inflight | None = "keep"
    quiesce_seconds: float = 60.0
    weights: Weights = "keep"
    gpu_seconds: float = 300.0
    wants_hooks: tuple[Hook, ...] = ()
    hook_seconds: float = 30.0
    listener: Listener | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def of(cls, request: DumpRequest) -> Dump:
        return cls(
            target=request.target,
            port=request.port,
            output=Path(request.output).absolute(),
            leave_running=request.leave_running,
            any_process=request.any_process,
            skip_in_flight=request.skip_in_flight,
            compress=request.compress,
            direct_io=request.direct_io,
            wants_canary=request.canary,
            inflight=request.requests_in_flight,
            quiesce_seconds=request.quiesce_seconds,
            weights=request.weights,
            gpu_seconds=request.gpu_seconds,
            wants_hooks=tuple(request.hooks),
            hook_seconds=request.hook_seconds,
            listener=request.listener,
        )

    root: int = 0
    lock: int | None = None
    inventory: Inventory = field(init=False)
    client: Any = None
    criu_version: str = ""
    canary: Any = None
    no_canary: str | None = None
    still: QuiesceSession | None = None
    gpu: GpuMemory | None = None
    gpu_state: GpuState | None = None
    lost: GpuLost | None = None
    options: DumpOptions = field(init=False)
    staged: Path | None = None
    link_remap_lock: LinkRemapLock | None = None
    conversation: Any = None
    hooks: Hooks | None = None
    its_root: Path = Path("/")
    its_stores: tuple[str, ...] = ()
    its_temporary_files: tuple[str, ...] = ()
    its_model_files: tuple[str, ...] = ()
    published: bool = False
    files: Any = None
    carried: tuple[CarriedFile, ...] = ()
    recorded: tuple[RecordedFile, ...] = ()
    parts: tuple[Part, ...] = ()
    manifest: Manifest = field(init=False)
