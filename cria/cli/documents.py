"""The JSON documents of `cria inspect` and `cria ps`, and the schemas they promise.

In them a role is a string, with its confidence and evidence beside it, and values of options that
look like secrets are left out.
"""

from __future__ import annotations

from inspect import cleandoc
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
from cria.redaction import hide_in_words

if TYPE_CHECKING:
    from cria.checkpoint.handle import Checkpoint


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint tells besides its inventory; of what there is not, `no_...` says why.

    `bytes` are those it takes on the disk; `canary_tokens` are generated anew after each restore.
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
        known = checkpoint.manifest
        return cls(
            created=known.created,
            host=known.host.name,
            kernel=known.host.kernel,
            criu_version=known.criu_version,
            cria_version=known.cria_version,
            bytes=checkpoint.size_bytes,
            quiesced=known.quiesced,
            no_quiesce=known.no_quiesce,
            canary_tokens=len(known.canary.tokens) if known.canary is not None else 0,
            no_canary=known.no_canary,
            gpu_state=known.gpu_state,
        )


class Inspected(msgspec.Struct, frozen=True, kw_only=True):
    """`cria inspect --json`: one inventory, and where it is from. Times are Unix seconds, sizes bytes.

    `target` is the PID of the root, or the path of the checkpoint. Of a checkpoint, `stored` is what else
    it tells, and `timings` are those of the dump.
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


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One engine of `cria ps`. `ready` says whether it could be dumped now; `blockers` why not.

    Where cria may not look into a process, only `pid`, `uid`, `model` and the age are known.
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
    """`cria ps --json`."""

    schema_version: Literal[1] = 1
    engines: tuple[Listed, ...]


def inspected(
    inventory: Inventory,
    *,
    target: str,
    stored: Stored | None = None,
    timings: Timings | None = None,
) -> Inspected:
    """Return the document about one inventory, of an engine or, where it is `stored`, of a checkpoint."""
    return Inspected(
        source="engine" if stored is None else "checkpoint",
        target=target,
        pid=inventory.root.pid,
        taken=inventory.taken,
        is_engine=inventory.is_engine,
        topology=inventory.topology,
        processes=tuple(map(_without_secrets, inventory.processes)),
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


def plain(value: Any) -> Any:
    """Return what is to be encoded: every role flattened into three fields."""
    return _flat(msgspec.to_builtins(value))


def schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON Schema of a document, as `plain` renders it: every field is always there."""
    made = msgspec.json.schema(kind)
    for definition in made["$defs"].values():
        definition["description"] = cleandoc(definition.get("description", ""))
        fields = definition.get("properties", {})
        if "role" in fields and "Role" in made["$defs"]:
            role = made["$defs"]["Role"]["properties"]
            fields["role"] = {"type": "string"}
            fields["confidence"] = role["confidence"]
            fields["evidence"] = role["evidence"]
        for field in fields.values():
            field.pop("default", None)
        definition["required"] = list(fields)
    made["$defs"].pop("Role", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def schema_text(kind: type[msgspec.Struct]) -> str:
    """Return the schema as the file under docs/reference/schema holds it."""
    return msgspec.json.format(msgspec.json.encode(schema(kind)), indent=2).decode() + "\n"


def _without_secrets(process: Process) -> Process:
    return msgspec.structs.replace(process, command=hide_in_words(process.command))


def _flat(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_flat(each) for each in value]
    if not isinstance(value, dict):
        return value
    flat = {name: _flat(each) for name, each in value.items()}
    role = value.get("role")
    if isinstance(role, dict):
        flat |= {
            "role": role["name"],
            "confidence": role["confidence"],
            "evidence": list(role["evidence"]),
        }
    return flat
