"""A checkpoint archive as a container image: an OCI image layout whose one layer is the archive.

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
from cria.system import compression as compressed
from cria.system.compression import Compression, Writable
from cria.system.files import writing_failed

PREFIX = "oci:"
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MEDIA: dict[Compression, str] = {
    "none": _LAYER,
    "gzip": f"{_LAYER}+gzip",
    "zstd": f"{_LAYER}+zstd",
}
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


def parse_reference(words: str) -> tuple[Path, str]:
    """The directory and the tag in `oci:DIR` or `oci:DIR:TAG`. Raises UsageError."""
    directory, colon, tag = words.removeprefix(PREFIX).rpartition(":")
    if not colon:
        directory, tag = tag, "latest"
    if not directory or not _TAG.fullmatch(tag):
        raise UsageError(f"'{words}' names no image", remedy="write oci:DIR or oci:DIR:TAG")
    return Path(directory).absolute(), tag


def image_annotations(origin: Origin, machine: str) -> dict[str, str]:
    """What makes an image one that a runtime restores from: the first two are what they look for.

    Sources: CheckpointAnnotationName in checkpointctl/lib/annotations.go, which containerd reads, and
    in CRI-O's internal/annotations/checkpoint.go, which still goes by its older name.
    """
    own, older = "org.criu.checkpoint", "io.kubernetes.cri-o.annotations.checkpoint"
    said = {
        f"{own}.container.name": origin.container or "container",
        f"{older}.name": origin.container or "container",
        f"{own}.engine.name": origin.runtime,
        f"{own}.pod.name": origin.pod,
        f"{own}.pod.namespace": origin.namespace,
        f"{own}.rootfsImageName": origin.image,
        f"{own}.rootfsImageID": origin.image_ref,
        f"{own}.runtime.name": origin.oci_runtime,
        f"{own}.host.arch": machine,
    }
    return {key: value for key, value in said.items() if value}


class StagedImage:
    """An image that is written beside `target` under another name, and gets its own when it is whole."""

    def __init__(self, target: Path, tag: str, compression: Compression) -> None:
        """Raises CheckpointExists, NotWritable or NoSpace."""
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
            self._file = open(self._path / "layer", "xb", buffering=0, opener=_private)  # noqa: SIM115
        except OSError as error:
            raise writing_failed(error, target) from error
        self._stored = _Hashed(self._file)
        self._stream = compressed.writer(self._stored, compression)
        # Uncompressed, what is stored is the layer itself and need not be digested twice.
        self.layer = self._stored if compression == "none" else _Hashed(self._stream)

    def finish(self, origin: Origin, machine: str) -> None:
        """End the layer, which was written to `layer`, and write what describes it."""
        if self.layer is not self._stored:
            self._stream.close()
        os.fsync(self._file.fileno())
        layer = _descriptor(_MEDIA[self._compression], self._stored.hexdigest(), self._stored.size)
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
            "config": self._blob(config, _CONFIG),
            "layers": [layer],
            "annotations": image_annotations(origin, machine),
        }
        described = self._blob(manifest, _MANIFEST)
        self.digest = str(described["digest"])
        described |= {"annotations": {"org.opencontainers.image.ref.name": self._tag}}
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [described]}
        self._write("index.json", msgspec.json.encode(index))
        self._write("oci-layout", msgspec.json.encode({"imageLayoutVersion": "1.0.0"}))

    def publish(self) -> None:
        self._file.close()
        if os.path.lexists(self.target):  # an empty directory would be replaced
            raise self._exists()
        try:
            self._path.rename(self.target)
        except OSError as error:
            raise writing_failed(error, self.target) from error

    def discard(self) -> None:
        """Remove what was not published."""
        self._file.close()
        shutil.rmtree(self._path, ignore_errors=True)

    def _blob(self, content: dict[str, Any], media: str) -> dict[str, Any]:
        data = msgspec.json.encode(content)
        digest = hashlib.sha256(data).hexdigest()
        self._write(f"blobs/sha256/{digest}", data)
        return _descriptor(media, digest, len(data))

    def _write(self, name: str, data: bytes) -> None:
        with open(self._path / name, "xb", opener=_private) as file:
            file.write(data)

    def _exists(self) -> CheckpointExists:
        return CheckpointExists(
            f"{self.target} exists already",
            remedy=f"choose another name, or remove it: rm -r {self.target}",
        )


class _Hashed:
    """Passes on what it is given, and knows its digest and size."""

    def __init__(self, sink: Writable) -> None:
        self._sink = sink
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        write(self._sink, data)
        self._digest.update(data)
        self.size += len(data)
        return len(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _descriptor(media: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": size}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
