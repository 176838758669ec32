"""Checks of what stands beside CRIU on this host: the GPU driver and the container runtime."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from cria.doctor.row import Row, ok, skip, warn
from cria.process.tree import PROC

# NVIDIA's checkpoint API is in the driver since 570 (cuCheckpointProcessLock and its sisters).
_CHECKPOINT_API_DRIVER = 570
OPTIONS = Path("/etc/criu")


def gpu(_place: Path) -> Iterator[Row]:
    version = driver()
    if version is None:
        yield skip("GPU", "no NVIDIA driver on this host")
        return
    count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if int(version.split(".")[0]) < _CHECKPOINT_API_DRIVER:
        remedy = f"install driver {_CHECKPOINT_API_DRIVER} or newer"
        yield warn("GPU driver", f"{version} has no checkpoint API", remedy)
    else:
        yield ok("GPU driver", f"{version} has the checkpoint API, {count} GPUs")
    tool = shutil.which("cuda-checkpoint")
    yield ok("cuda-checkpoint", tool) if tool else skip("cuda-checkpoint", "not on PATH")


def driver(proc: Path = PROC) -> str | None:
    """The version of the NVIDIA kernel driver, such as 570.86.10."""
    try:
        text = (proc / "driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else None


def runtime(_place: Path) -> Iterator[Row]:
    """runc and crun read CRIU's options from a file: that is how a kubelet's checkpoint gets them."""
    names = [name for name in ("runc", "crun") if shutil.which(name)]
    if not names:
        yield skip("container runtime", "neither runc nor crun on PATH")
    for name in names:
        # crun reads runc's file where it has none of its own.
        files = [OPTIONS / f"{n}.conf" for n in dict.fromkeys((name, "runc"))]
        text = next((file.read_text() for file in files if file.exists()), "")
        if "tcp-established" in text:
            yield ok(name, f"{files[0].parent} lets it checkpoint containers with connections")
        else:
            yield warn(
                name,
                "a container with a TCP connection cannot be checkpointed",
                f"mkdir -p /etc/criu && printf 'tcp-established\\nnetwork-lock nftables\\n'"
                f" >> /etc/criu/{name}.conf",
            )


GPU_CHECKS = (gpu,)
RUNTIME_CHECKS = (runtime,)
