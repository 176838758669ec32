"""Read from the metadata of a checkpoint archive which container it was taken of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Runtime = Literal["containerd", "CRI-O", "podman", "unknown"]

CONFIG, SPEC = "config.dump", "spec.dump"

# Sources: internal/cri/annotations in containerd, internal/annotations in CRI-O, pkg/annotations in podman.
_CONTAINERD = "io.kubernetes.cri."
_MANAGER = "io.container.manager"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The container of an archive; what its runtime did not record is empty.

    `image` is the name by which the container's image was asked for, `image_ref` what a restore pulls.
    """

    runtime: Runtime
    oci_runtime: str
    container: str
    container_id: str
    pod: str
    namespace: str
    image: str
    image_ref: str
    checkpointed: str


class _ContainerConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Source: ContainerConfig in checkpointctl/lib/metadata.go."""

    id: str = ""
    name: str = ""
    rootfs_image: str = ""
    rootfs_image_ref: str = ""
    rootfs_image_name: str = ""
    runtime: str = ""
    checkpointed_time: str = ""


class _RuntimeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Source: Spec in opencontainers/runtime-spec."""

    annotations: Mapping[str, str] = {}


def read_origin(texts: Mapping[str, bytes]) -> Origin:
    """Read config.dump and spec.dump. Raises msgspec.DecodeError where they are not as they should be."""
    config = msgspec.json.decode(texts[CONFIG], type=_ContainerConfig)
    annotations = msgspec.json.decode(texts[SPEC], type=_RuntimeSpec).annotations

    def first(*keys: str) -> str:
        return next((annotations[key] for key in keys if annotations.get(key)), "")

    return Origin(
        runtime=_runtime(annotations),
        oci_runtime=config.runtime,
        container=first(f"{_CONTAINERD}container-name", "io.kubernetes.container.name")
        or config.name,
        container_id=config.id,
        pod=first(f"{_CONTAINERD}sandbox-name", "io.kubernetes.pod.name"),
        namespace=first(f"{_CONTAINERD}sandbox-namespace", "io.kubernetes.pod.namespace"),
        image=config.rootfs_image_name or config.rootfs_image,
        image_ref=config.rootfs_image_ref,
        checkpointed=config.checkpointed_time,
    )


def _runtime(annotations: Mapping[str, str]) -> Runtime:
    managers: dict[str, Runtime] = {"cri-o": "CRI-O", "libpod": "podman"}
    if (manager := annotations.get(_MANAGER, "")) in managers:
        return managers[manager]
    return "containerd" if any(key.startswith(_CONTAINERD) for key in annotations) else "unknown"
