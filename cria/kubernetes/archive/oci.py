"""Write a checkpoint archive as a container image: an OCI image layout whose one layer is the archive.

`skopeo copy oci:DIR docker://...` pushes it. Source of the layout: opencontainers/image-spec.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import msgspec

from cria.errors import CheckpointExists, UsageError
from cria.kubernetes.archive.metadata import Origin
from cria.kubernetes.archive.splice import write
from cria.system import compression as compressors
from cria.system.compression import Compression, Writable
from cria.system.files import writing_failed

PREFIX = "oci:"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_LAYER_TYPES: dict[Compression, str] = {
    "none": _LAYER,
    "gzip": f"{_LAYER}+gzip",
    "zstd": f"{_LAYER}+zstd",
}
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


def parse_reference(text: str) -> tuple[Path, str]:
    """Return the directory and the tag in `oci:DIR` or `oci:DIR:TAG`. Raises UsageError."""
    directory, colon, tag = text.removeprefix(PREFIX).rpartition(":")
    if not colon:
        directory, tag = tag, "latest"
    if not directory or not _TAG.fullmatch(tag):
        raise UsageError(f"'{text}' names no image", remedy="write oci:DIR or oci:DIR:TAG")
    return Path(directory).absolute(), tag


def image_annotations(origin: Origin, machine: str) -> dict[str, str]:
    """Return the annotations of an image; runtimes restore an image that has one of the first two.

    Sources: CheckpointAnnotationName in checkpointctl/lib/annotations.go, which containerd reads, and
    in CRI-O's internal/annotations/checkpoint.go, which reads its older name.
    """
    prefix, older_prefix = "org.criu.checkpoint", "io.kubernetes.cri-o.annotations.checkpoint"
    annotations = {
        f"{prefix}.container.name": origin.container or "container",
        f"{older_prefix}.name": origin.container or "container",
        f"{prefix}.engine.name": origin.runtime,
        f"{prefix}.pod.name": origin.pod,
        f"{prefix}.pod.namespace": origin.namespace,
        f"{prefix}.rootfsImageName": origin.image,
        f"{prefix}.rootfsImageID": origin.image_ref,
        f"{prefix}.runtime.name": origin.oci_runtime,
        f"{prefix}.host.arch": machine,
    }
    return {key: value for key, value in annotations.items() if value}


class StagedImage:
    """An image layout that is written beside `target` under another name, and renamed when it is complete.

    The layer is written to `layer`; `finish` completes the image, then `publish` or `discard` is called.
    """

    def __init__(self, target: Path, tag: str, compression: Compression) -> None:
        """Create the directory. Raises CheckpointExists, NotWritable or NoSpace."""
        self.target = target
        self.digest = ""
        self._tag = tag
        self._compression = compression
        if os.path.lexists(target):
            raise self._exists()
        self._path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        self._blobs = self._path / "blobs" / "sha256"
        try:
            for directory in (self._path, self._blobs.parent, self._blobs):
                directory.mkdir(mode=0o700)
            self._file = open(self._path / "layer", "xb", buffering=0, opener=_open_private)  # noqa: SIM115
        except OSError as error:
            raise writing_failed(error, target) from error
        self._stored = _Hashed(self._file)
        self._stream = compressors.writer(self._stored, compression)
        # Without compression the stored bytes are the layer's own, and one digest serves both.
        self.layer = self._stored if compression == "none" else _Hashed(self._stream)

    def finish(self, origin: Origin, machine: str) -> None:
        """End the layer, and write the files that describe it."""
        if self.layer is not self._stored:
            self._stream.close()
        os.fsync(self._file.fileno())
        layer = _descriptor(
            _LAYER_TYPES[self._compression], self._stored.hexdigest(), self._stored.size
        )
        (self._path / "layer").rename(self._blobs / self._stored.hexdigest())
        config = {
            "architecture": machine or "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{self.layer.hexdigest()}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._write_blob(config, _CONFIG),
            "layers": [layer],
            "annotations": image_annotations(origin, machine),
        }
        descriptor = self._write_blob(manifest, _MANIFEST)
        self.digest = str(descriptor["digest"])
        descriptor |= {"annotations": {"org.opencontainers.image.ref.name": self._tag}}
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [descriptor]}
        self._write("index.json", msgspec.json.encode(index))
        self._write("oci-layout", msgspec.json.encode({"imageLayoutVersion": "1.0.0"}))

    def publish(self) -> None:
        """Rename the image to its target. Raises CheckpointExists, NotWritable or NoSpace."""
        self._file.close()
        if os.path.lexists(self.target):  # rename(2) would replace an empty directory
            raise self._exists()
        try:
            self._path.rename(self.target)
        except OSError as error:
            raise writing_failed(error, self.target) from error

    def discard(self) -> None:
        """Remove an image that was not published."""
        self._file.close()
        shutil.rmtree(self._path, ignore_errors=True)

    def _write_blob(self, document: dict[str, Any], media_type: str) -> dict[str, Any]:
        content = msgspec.json.encode(document)
        digest = hashlib.sha256(content).hexdigest()
        self._write(f"blobs/sha256/{digest}", content)
        return _descriptor(media_type, digest, len(content))

    def _write(self, name: str, content: bytes) -> None:
        with open(self._path / name, "xb", opener=_open_private) as file:
            file.write(content)

    def _exists(self) -> CheckpointExists:
        return CheckpointExists(
            f"{self.target} exists already",
            remedy=f"choose another name, or remove it: rm -r {self.target}",
        )


class _Hashed:
    """Passes on what is written to it, and has its digest and size."""

    def __init__(self, target: Writable) -> None:
        self._target = target
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        write(self._target, data)
        self._digest.update(data)
        self.size += len(data)
        return len(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
