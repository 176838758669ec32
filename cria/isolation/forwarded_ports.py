"""The published ports of an engine in a network namespace of its own: listeners on the host that lead inside."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cria.errors import PortTaken, PortUnknown
from cria.model.inventory import Endpoint, Socket

if TYPE_CHECKING:
    from cria.isolation.namespaces import CloneNamespaces

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
BACKLOG = 2048


class ForwardedPort:
    """One listener on the host, from the moment it is planned, and where it leads."""

    def __init__(self, inner: Endpoint, port: int) -> None:
        self.inner = inner
        family = socket.AF_INET6 if ":" in inner.address else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind((inner.address, port))
            self.listener.listen(BACKLOG)
        except OSError as error:
            self.listener.close()
            raise PortTaken(
                f"port {port} (for {inner.port}) is taken", details=error.strerror
            ) from error
        self.outer = Endpoint(address=inner.address, port=self.listener.getsockname()[1])

    def close(self) -> None:
        self.listener.close()


def listen_on_host(
    published: Iterable[Socket], ports: Mapping[int, int], *, any_port: bool
) -> list[ForwardedPort]:
    """Listen on the host for each published listener: on the port `ports` names for it, else on its own.

    With `any_port` those that are not named get a free one. All or none. Raises PortTaken, and
    PortUnknown for a port that is not published: the others cannot be reached from outside anyway.
    """
    inner = {each.local.port: each.local for each in published}
    unknown = sorted(set(ports) - set(inner))
    if unknown:
        raise PortUnknown(
            f"port {unknown[0]} is not published by this engine",
            details=f"its published ports: {', '.join(map(str, inner)) or 'none'}",
            remedy="name a published port, or leave the network shared: without --isolate net",
        )
    made: list[ForwardedPort] = []
    try:
        for old, endpoint in inner.items():
            made.append(ForwardedPort(endpoint, ports.get(old, 0 if any_port else old)))
    except BaseException:
        for forward in made:
            forward.close()
        raise
    return made


def hand_over(forwards: Sequence[ForwardedPort], place: CloneNamespaces) -> None:
    """Hand the listeners to a process in the namespaces, which connects them to the engine."""
    if not forwards:
        return
    script = str(Path(__file__).with_name("forward.py"))
    listeners = [forward.listener.fileno() for forward in forwards]
    words = [
        f"{number}:{WILDCARDS.get(f.inner.address, f.inner.address)}:{f.inner.port}"
        for number, f in zip(place.descriptor_numbers(listeners), forwards, strict=True)
    ]
    place.run([sys.executable, "-I", "-S", script, *words], listeners)
    for forward in forwards:
        forward.close()
