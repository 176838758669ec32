"""API ports of an engine in its own network namespace: listeners on the host that lead to them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cria.errors import PortTaken, PortUnknown
from cria.isolation.namespaces import CloneNamespaces
from cria.model.inventory import Socket
from cria.model.socket import Endpoint

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_BACKLOG = 2048  # uvicorn's, with which vLLM listens
_SCRIPT = Path(__file__).with_name("forward.py")


class ForwardedPort:
    """A listener on the host, and the endpoint inside the namespace to which it leads.

    Port 0 lets the kernel choose. Raises PortTaken.
    """

    def __init__(self, inner: Endpoint, port: int) -> None:
        self.inner = inner
        family = socket.AF_INET6 if ":" in inner.address else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind((inner.address, port))
            self.listener.listen(_BACKLOG)
        except OSError as error:
            self.listener.close()
            raise PortTaken(
                f"port {port} (for {inner.port}) is taken", details=error.strerror
            ) from error
        self.outer = Endpoint(address=inner.address, port=self.listener.getsockname()[1])

    def close(self) -> None:
        self.listener.close()


def listen_on_host(
    api_listeners: Iterable[Socket], ports: Mapping[int, int], *, any_port: bool
) -> list[ForwardedPort]:
    """Listen on the host for each API port: on the port that `ports` names for it, else on the same port.

    With `any_port` those that are not named get a free port. Either all are listened on or none. Raises
    PortTaken, and PortUnknown where `ports` names a port that is no API port: nobody could reach it.
    """
    inner = {listener.local.port: listener.local for listener in api_listeners}
    unknown = sorted(set(ports) - set(inner))
    if unknown:
        raise PortUnknown(
            f"port {unknown[0]} is no API port of this engine",
            details=f"its API ports: {', '.join(map(str, inner)) or 'none'}",
            remedy="name an API port, or share the host's network: without --isolate net",
        )
    forwarded: list[ForwardedPort] = []
    try:
        for old, endpoint in inner.items():
            forwarded.append(ForwardedPort(endpoint, ports.get(old, 0 if any_port else old)))
    except BaseException:
        for port in forwarded:
            port.close()
        raise
    return forwarded


def forward(ports: Sequence[ForwardedPort], namespaces: CloneNamespaces) -> None:
    """Hand the listeners to a process in the namespaces, which connects them to the engine."""
    if not ports:
        return
    listeners = [port.listener.fileno() for port in ports]
    arguments = [
        f"{number}:{_WILDCARDS.get(port.inner.address, port.inner.address)}:{port.inner.port}"
        for number, port in zip(namespaces.descriptor_numbers(listeners), ports, strict=True)
    ]
    namespaces.run([sys.executable, "-I", "-S", str(_SCRIPT), *arguments], listeners)
    for port in ports:
        port.close()
