"""What is stored with a checkpoint: everything a restore, a check or a reader needs besides the images."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from cria.errors import CheckpointDamaged, CheckpointMissing, CheckpointNewer
from cria.events import Timings
from cria.model.inventory import Inventory
from cria.model.socket import Endpoint

SCHEMA_VERSION: Final = 1

# The names of what lies in a checkpoint's directory, beside the manifest itself.
MANIFEST = "manifest.json"
IMAGES = "images"
SAVED_FILES = "carried"
MEMORY = "memory"  # compressed pages that are not in the images; only there where something is
DUMP_LOG = "dump.log"  # beside the images, where CRIU also writes its statistics

Inflight = Literal["keep", "drain", "abort"]
Weights = Literal["keep", "drop"]


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Where the dump was made. `cpu_features` are those of /proc/cpuinfo; empty in old checkpoints."""

    name: str
    kernel: str
    machine: str
    boot_id: str
    cpu: str = ""
    cpu_features: tuple[str, ...] = ()


class DumpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How CRIU was called."""

    leave_running: bool
    network_lock: str
    image_io_mode: str | None
    shell_job: bool


class SavedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file the engine needs and CRIU's images do not hold: put back at `path` before a restore.

    `names` are its other names (hard links). An `owned` file belongs to the engine, and a
    restore replaces what is at its path. Any other is a temporary file, which may be somebody else's.
    """

    path: str
    stored_as: str
    size_bytes: int
    stored_bytes: int
    mode: int
    uid: int
    gid: int
    names: tuple[str, ...] = ()
    owned: bool = True

    @property
    def every_name(self) -> tuple[str, ...]:
        return (self.path, *self.names)


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """A file the engine needs and can find again: `digest` is the one of cria.system.digests.sampled.

    `stamp` is the one of cria.checkpoint.fingerprints; empty in old checkpoints.
    """

    path: str
    size_bytes: int
    digest: str
    stamp: str = ""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the checkpoint, by its path inside it; `digest` is BLAKE3, empty in old checkpoints."""

    path: str
    size_bytes: int
    digest: str = ""


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """A greedy generation of the engine just before its dump, with the log-probability of each token.

    `seconds` is what it took, from the request to the whole answer.
    """

    prompt: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    seconds: float


class Quiesced(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine was quiesced. It wakes up so after a restore.

    `control` is the unix socket over which it is told to go on; `inflight` what became of the requests
    that ran; `groups` counts the process groups met at a barrier in all of `workers`. `weights` says
    where an engine with GPUs that was put to sleep has its weights; None where it was not.
    """

    control: str
    inflight: Inflight
    workers: int
    groups: int
    dropped_bytes: int
    weights: Weights | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU: `uuid` as NVML writes it (GPU-...), `memory_bytes` all it has."""

    uuid: str
    name: str
    memory_bytes: int


class GpuState(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken off the GPUs, and lies in the images as memory of the processes `ranks`.

    `gpus` are those they computed on, `others` all else that the driver showed them; `driver` is the
    version of the kernel driver; `taken_bytes` what the processes grew by on the host.
    """

    ranks: tuple[int, ...]
    gpus: tuple[Gpu, ...]
    others: tuple[Gpu, ...] = ()
    driver: str
    taken_bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of one checkpoint. `created` is RFC 3339 in UTC; `no_...` says why there is none."""

    schema_version: Literal[1] = SCHEMA_VERSION
    cria_version: str
    created: str
    host: Host
    criu_version: str
    options: DumpOptions
    inventory: Inventory
    api_endpoints: tuple[Endpoint, ...] = msgspec.field(name="published")
    saved_files: tuple[SavedFile, ...] = msgspec.field(name="carried")
    parts: tuple[Part, ...]
    fingerprints: tuple[Fingerprint, ...] = msgspec.field(default=(), name="recorded")
    timings: Timings
    canary: Canary | None = None
    no_canary: str | None = None
    quiesced: Quiesced | None = None
    no_quiesce: str | None = None
    gpu_state: GpuState | None = None


def now() -> str:
    """This moment in RFC 3339, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class _Version(msgspec.Struct):
    schema_version: int


def write(manifest: Manifest, path: Path) -> None:
    """Write the manifest for its owner only, through to the disk."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    with path.open("xb") as file:
        path.chmod(0o600)
        file.write(text + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> Manifest:
    """Read a manifest. Raises CheckpointMissing, CheckpointDamaged or CheckpointNewer."""
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointMissing(
            f"{path.parent} is not a checkpoint",
            details="it does not exist" if not path.parent.exists() else f"no {path.name} in it",
        ) from error
    try:
        version = msgspec.json.decode(text, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise CheckpointNewer(
                f"{path.parent} was written by a newer cria",
                details=f"schema version {version}, this cria reads {SCHEMA_VERSION}",
            )
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
        raise CheckpointDamaged(f"{path} cannot be read", details=str(error)) from error
