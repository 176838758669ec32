"""Free ports that stay free until somebody who was told of them binds them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def reserve_any(count: int) -> Iterator[tuple[int, ...]]:
    """Hold `count` free TCP ports of every local address while the context lasts.

    Nobody gets such a port by asking for port 0. A server that sets SO_REUSEADDR and binds the number
    itself, as vLLM does, binds over the reservation: so it is told the number and can take its time.
    """
    with ExitStack() as held:
        yield tuple(held.enter_context(_held()).getsockname()[1] for _ in range(count))


def _held() -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("", 0))
    # Set after bind: with it the kernel would choose ports that others hold in this way too.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock
