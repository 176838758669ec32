"""Write and read the manifest beside a kubelet's archive: whose it is, how its engine was quiesced, what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from cria.errors import NotWritable
from cria.events import Timings
from cria.kubernetes.kubelet.api_errors import Server
from cria.kubernetes.kubelet.pods import RunningContainer
from cria.kubernetes.kubelet.quiesce import QuiesceRecord
from cria.system.files import replace_file

SCHEMA_VERSION: Final = 1
SUFFIX = ".cria.json"


class VerifiedArchive(msgspec.Struct, frozen=True, kw_only=True):
    """An archive that was read and is complete. `path` is where it was read; sizes are in bytes."""

    path: str
    bytes: int
    pages_bytes: int
    runtime: str
    oci_runtime: str
    checkpointed: str


class ArchiveManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of one archive. `archive` is its path on the container's node.

    `created` is RFC 3339 in UTC; `not_checked` says why the archive was not read.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    cria_version: str
    created: str
    container: RunningContainer
    archive: str
    server: Server = msgspec.field(name="via")
    timeout_seconds: int
    quiesce: QuiesceRecord = msgspec.field(name="still")
    checked: VerifiedArchive | None = None
    not_checked: str | None = None
    timings: Timings


def write(manifest: ArchiveManifest, directory: Path) -> Path:
    """Write a manifest under its archive's name, readable for its owner only. Returns its path. Raises NotWritable."""
    path = directory / f"{Path(manifest.archive).name}{SUFFIX}"
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    try:
        replace_file(path, text + b"\n")
    except OSError as error:
        raise NotWritable(
            f"cannot write the manifest of {Path(manifest.archive).name}",
            details=f"{error.strerror}: {directory}",
            remedy="name a directory you may write to: --manifests DIR",
        ) from error
    return path


def read(path: Path) -> ArchiveManifest | None:
    """Return the manifest at `path`; None where there is none, or none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ArchiveManifest)
    except (OSError, msgspec.DecodeError):
        return None
