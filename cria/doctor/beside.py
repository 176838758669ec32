"""Checks of what stands beside CRIU on this host: the container runtime."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from cria.doctor.row import Row, ok, skip, warn

OPTIONS = Path("/etc/criu")


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


RUNTIME_CHECKS = (runtime,)
