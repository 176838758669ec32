"""What is recorded beside a kubelet's archive: whose it is, who brought its engine to a still point, what is in it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final, Literal

import msgspec

from cria.errors import NotWritable
from cria.events import Timings
from cria.kubernetes.kubelet.api_errors import Server
from cria.kubernetes.kubelet.pods import RunningContainer
from cria.kubernetes.kubelet.quiesce import QuiesceRecord

SCHEMA_VERSION: Final = 1
SUFFIX = ".cria.json"


class VerifiedArchive(msgspec.Struct, frozen=True, kw_only=True):
    """An archive that was read and is whole: `path` is where it was read, sizes are bytes."""

    path: str
    bytes: int
    pages_bytes: int
    runtime: str
    oci_runtime: str
    checkpointed: str


class ArchiveManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The description of one archive, which lies at `archive` on the container's node.

    `created` is RFC 3339 in UTC; `not_checked` says why nothing was read of the archive.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    cria_version: str
    created: str
    container: RunningContainer
    archive: str
    via: Server
    timeout_seconds: int
    still: QuiesceRecord
    checked: VerifiedArchive | None = None
    not_checked: str | None = None
    timings: Timings


def write(manifest: ArchiveManifest, directory: Path) -> Path:
    """Write it for its owner only, under the archive's name; all of it or nothing. Raises NotWritable."""
    path = directory / f"{Path(manifest.archive).name}{SUFFIX}"
    staged = directory / f".{path.name}.{secrets.token_hex(4)}.partial"
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text + b"\n")
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise NotWritable(
            f"cannot write the manifest of {Path(manifest.archive).name}",
            details=f"{error.strerror}: {directory}",
            remedy="name a directory you may write to: --manifests DIR",
        ) from error
    return path


def read(path: Path) -> ArchiveManifest | None:
    """The manifest at `path`; None when there is none, or none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ArchiveManifest)
    except (OSError, msgspec.DecodeError):
        return None
