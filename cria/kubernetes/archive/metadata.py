"""Which container a checkpoint archive was taken of, as the runtime's own words in it say."""

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
    """The container of an archive; what its runtime did not say is empty.

    `image` is the name that the container's image was asked for by, `image_ref` what a restore pulls.
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


class _Config(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Source: ContainerConfig in checkpointctl/lib/metadata.go."""

    id: str = ""
    name: str = ""
    rootfs_image: str = ""
    rootfs_image_ref: str = ""
    rootfs_image_name: str = ""
    runtime: str = ""
    checkpointed_time: str = ""


class _Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Source: Spec in opencontainers/runtime-spec."""

    annotations: Mapping[str, str] = {}


def read_origin(texts: Mapping[str, bytes]) -> Origin:
    """What config.dump and spec.dump say. Raises msgspec.DecodeError where they say nothing that fits."""
    config = msgspec.json.decode(texts[CONFIG], type=_Config)
    said = msgspec.json.decode(texts[SPEC], type=_Spec).annotations
    return Origin(
        runtime=_runtime(said),
        oci_runtime=config.runtime,
        container=_first(said, f"{_CONTAINERD}container-name", "io.kubernetes.container.name")
        or config.name,
        container_id=config.id,
        pod=_first(said, f"{_CONTAINERD}sandbox-name", "io.kubernetes.pod.name"),
        namespace=_first(said, f"{_CONTAINERD}sandbox-namespace", "io.kubernetes.pod.namespace"),
        image=config.rootfs_image_name or config.rootfs_image,
        image_ref=config.rootfs_image_ref,
        checkpointed=config.checkpointed_time,
    )


def _runtime(said: Mapping[str, str]) -> Runtime:
    managers: dict[str, Runtime] = {"cri-o": "CRI-O", "libpod": "podman"}
    if (manager := said.get(_MANAGER, "")) in managers:
        return managers[manager]
    return "containerd" if any(key.startswith(_CONTAINERD) for key in said) else "unknown"


def _first(said: Mapping[str, str], *keys: str) -> str:
    return next((said[key] for key in keys if said.get(key)), "")
