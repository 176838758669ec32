"""The JSON documents of `cria inspect` and `cria ps`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cria.events import Timings
from cria.model.inventory import (
    Descriptor,
    Inventory,
    NamedGroup,
    Process,
    ProcessGroup,
    SharedFile,
    Socket,
    Topology,
    UnixSocket,
)
from cria.model.manifest import GpuState, Quiesced
from cria.redaction import redact_command

if TYPE_CHECKING:
    from cria.checkpoint.handle import Checkpoint


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """How, when and where a checkpoint was taken.

    `bytes` is its size on the disk. `no_quiesce` and `no_canary` say why there is none. A restored
    engine has to generate the same `canary_tokens` tokens again.
    """

    created: str
    host: str
    kernel: str
    criu_version: str
    cria_version: str
    bytes: int
    quiesced: Quiesced | None
    no_quiesce: str | None
    canary_tokens: int
    no_canary: str | None
    gpu_state: GpuState | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Stored:
        manifest = checkpoint.manifest
        return cls(
            created=manifest.created,
            host=manifest.host.name,
            kernel=manifest.host.kernel,
            criu_version=manifest.criu_version,
            cria_version=manifest.cria_version,
            bytes=checkpoint.size_bytes,
            quiesced=manifest.quiesced,
            no_quiesce=manifest.no_quiesce,
            canary_tokens=len(manifest.canary.tokens) if manifest.canary is not None else 0,
            no_canary=manifest.no_canary,
            gpu_state=manifest.gpu_state,
        )


class Inspected(msgspec.Struct, frozen=True, kw_only=True):
    """`cria inspect --json`: the inventory of an engine or a checkpoint. Times are Unix seconds, sizes bytes.

    `target` is the PID of the engine's root process, or the path of the checkpoint. Only a checkpoint
    has `stored` and `timings`; the timings are those of the dump.
    """

    schema_version: Literal[1] = 1
    source: Literal["engine", "checkpoint"]
    target: str
    pid: int
    taken: float
    is_engine: bool
    topology: Topology
    processes: tuple[Process, ...]
    sockets: tuple[Socket, ...]
    unix_sockets: tuple[UnixSocket, ...]
    shared_files: tuple[SharedFile, ...]
    descriptors: tuple[Descriptor, ...]
    groups: tuple[ProcessGroup, ...]
    named_groups: tuple[NamedGroup, ...]
    checkpoint_bytes: int
    zero_bytes: int | None
    stored: Stored | None
    timings: Timings | None

    @classmethod
    def of(
        cls,
        inventory: Inventory,
        *,
        target: str,
        stored: Stored | None = None,
        timings: Timings | None = None,
    ) -> Inspected:
        """Describe an inventory; secrets in the commands of its processes are redacted."""
        return cls(
            source="engine" if stored is None else "checkpoint",
            target=target,
            pid=inventory.root.pid,
            taken=inventory.taken,
            is_engine=inventory.is_engine,
            topology=inventory.topology,
            processes=tuple(map(_redacted, inventory.processes)),
            sockets=inventory.sockets,
            unix_sockets=inventory.unix_sockets,
            shared_files=inventory.shared_files,
            descriptors=inventory.descriptors,
            groups=inventory.groups,
            named_groups=inventory.named_groups,
            checkpoint_bytes=inventory.checkpoint_bytes(),
            zero_bytes=inventory.zero_bytes(),
            stored=stored,
            timings=timings,
        )


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One engine of `cria ps`. `ready` says whether it can be dumped now, `blockers` what prevents it.

    Of an engine that belongs to another user only `pid`, `uid`, `model` and the age are known.
    """

    pid: int
    uid: int
    model: str | None
    topology: Topology | None
    url: str | None
    started: float
    age_seconds: float
    processes: int
    memory_bytes: int
    started_by_cria: bool
    ready: bool
    blockers: tuple[str, ...]


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """`cria ps --json`: the engines of this host."""

    schema_version: Literal[1] = 1
    engines: tuple[Listed, ...]


def flatten_roles(document: msgspec.Struct) -> Any:
    """Return a document as builtins in which a role is a string, with confidence and evidence beside it."""
    return _flatten(msgspec.to_builtins(document))


def _flatten(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_flatten(item) for item in value]
    if not isinstance(value, dict):
        return value
    flat = {name: _flatten(item) for name, item in value.items()}
    role = value.get("role")
    if isinstance(role, dict):
        flat |= {
            "role": role["name"],
            "confidence": role["confidence"],
            "evidence": list(role["evidence"]),
        }
    return flat


def _redacted(process: Process) -> Process:
    return msgspec.structs.replace(process, command=redact_command(process.command))
