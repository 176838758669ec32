"""Sockets in few words, for tests of the planner."""

from __future__ import annotations

from cria.model.socket import Endpoint, Occupant, PortSocket


def end(text: str) -> Endpoint:
    """`"8000"`, `"127.0.0.1:8000"` or `"[::1]:8000"` as an endpoint."""
    address, _, port = text.rpartition(":")
    return Endpoint(address=address.strip("[]") or "0.0.0.0", port=int(port))


def listener(at: str, number: int = 1, **fields: object) -> PortSocket:
    return _socket(number, {"state": "LISTEN", "local": end(at)} | fields)


def connection(at: str, to: str, number: int = 2, **fields: object) -> PortSocket:
    return _socket(number, {"state": "ESTABLISHED", "local": end(at), "peer": end(to)} | fields)


def pair(at: str, to: str, number: int = 2) -> tuple[PortSocket, PortSocket]:
    return connection(at, to, number), connection(to, at, number + 1)


def stranger(at: str, **fields: object) -> Occupant:
    what: dict[str, object] = {"protocol": "tcp", "state": "LISTEN", "owner": "PID 7 (other)"}
    return Occupant(**(what | {"local": end(at)} | fields))  # type: ignore[arg-type]


def _socket(number: int, fields: dict[str, object]) -> PortSocket:
    local = fields["local"]
    assert isinstance(local, Endpoint)
    family = "ipv6" if ":" in local.address else "ipv4"
    what: dict[str, object] = {"id": number, "ns_id": 1, "family": family, "protocol": "tcp"}
    return PortSocket(**(what | fields))  # type: ignore[arg-type]
