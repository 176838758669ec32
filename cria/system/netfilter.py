"""The little of nf_tables that locks need, over netlink: list tables, delete one, drop some connections.

No program and no library is needed for it: hosts without `nft` or `iptables` are common in containers.
Source of the numbers: include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from struct import Struct, pack, unpack_from

from cria.model.socket import Endpoint, plain

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 1, 2, 3, 6
_REQUEST, _ACK, _DUMP, _CREATE, _APPEND = 0x1, 0x4, 0x300, 0x400, 0x800
_ERROR, _DONE = 2, 3
_INET = 1
_OWNER = 2  # the table goes when its socket is closed; since Linux 5.12
_HOOKS = {"input": 1, "output": 3}
_NESTED = 0x8000
_HEADER = Struct("=IHHII")

# A restored connection sends a forged FIN with this mark; it must pass. Source: criu/include/sk-inet.h.
CRIU_MARK = 0xC114

Connection = tuple[Endpoint, Endpoint]


class Netfilter:
    """A netlink socket to nf_tables in the network namespace of this thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket; tables that it owns go with it."""
        self._socket.close()

    def __enter__(self) -> Netfilter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tables(self) -> list[str]:
        """The names of the tables of family inet."""
        self._socket.send(_message(_GETTABLE, _REQUEST | _DUMP, b""))
        return [_name(body) for body in self._answers(dump=True)]

    def delete(self, table: str) -> None:
        """Delete `table` with all it holds. Raises OSError (ENOENT) where there is none."""
        self._commit([_message(_DELTABLE, _REQUEST | _ACK, _text(1, table))])

    def drop(self, table: str, connections: Iterable[Connection]) -> None:
        """Make `table`, owned by this socket, whose rules drop what belongs to `connections`."""
        create = _REQUEST | _ACK | _CREATE
        messages = [_message(_NEWTABLE, create, _text(1, table) + _number(2, _OWNER))]
        for chain, hook in _HOOKS.items():
            messages.append(_message(_NEWCHAIN, create, _chain(table, chain, hook)))
            messages.append(_rule(table, chain, _marked(), accept=True))
            messages += (
                _rule(table, chain, _between(*ends), accept=False)
                for connection in connections
                for ends in (connection, connection[::-1])
            )
        self._commit(messages)

    def _commit(self, messages: list[bytes]) -> None:
        begin, end = (_batch(kind) for kind in (_BATCH_BEGIN, _BATCH_END))
        self._socket.send(begin + b"".join(messages) + end)
        answers = self._answers()
        for _ in messages:
            next(answers)

    def _answers(self, dump: bool = False) -> Iterator[bytes]:
        while True:
            data = self._socket.recv(1 << 20)
            while data:
                size, kind, *_ = _HEADER.unpack_from(data)
                body, data = data[_HEADER.size : size], data[(size + 3) & ~3 :]
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    _raise(unpack_from("=i", body)[0])
                elif not dump:
                    continue
                yield body


def _raise(code: int) -> None:
    if code:
        raise OSError(-code, os.strerror(-code), "nf_tables")


def _message(kind: int, flags: int, attributes: bytes) -> bytes:
    body = pack("!BBH", _INET, 0, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), _SUBSYSTEM | kind, flags, 1, 0) + body


def _batch(kind: int) -> bytes:
    body = pack("!BBH", 0, 0, 10)
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return _attribute(kind, pack("!I", number))


def _nest(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(parts))


def _name(body: bytes) -> str:
    size, _ = unpack_from("=HH", body, 4)
    return body[8 : 4 + size].rstrip(b"\0").decode()


def _chain(table: str, name: str, hook: int) -> bytes:
    return (
        _text(1, table)
        + _text(3, name)
        + _nest(4, _number(1, hook), _number(2, 0))
        + _text(7, "filter")
    )


def _rule(table: str, chain: str, matches: list[bytes], *, accept: bool) -> bytes:
    expressions = [*matches, _verdict(accept)]
    listed = _nest(4, *(_nest(1, expression) for expression in expressions))
    attributes = _text(1, table) + _text(2, chain) + listed
    return _message(_NEWRULE, _REQUEST | _ACK | _CREATE | _APPEND, attributes)


def _expression(name: str, *parts: bytes) -> bytes:
    return _text(1, name) + _nest(2, *parts)


def _verdict(accept: bool) -> bytes:
    return _expression("immediate", _number(1, 0), _nest(2, _nest(2, _number(1, int(accept)))))


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, 8), _number(2, 0), _nest(3, _attribute(1, value)))


def _meta(key: int) -> bytes:
    return _expression("meta", _number(1, 8), _number(2, key))


def _payload(base: int, offset: int, size: int) -> bytes:
    parts = (_number(1, 8), _number(2, base), _number(3, offset), _number(4, size))
    return _expression("payload", *parts)


def _marked() -> list[bytes]:
    return [_meta(3), _equals(pack("=I", CRIU_MARK))]


def _between(source: Endpoint, destination: Endpoint) -> list[bytes]:
    """The matches for a TCP packet from `source` to `destination`."""
    near, far = ip_address(plain(source.address)), ip_address(plain(destination.address))
    family, offset = (socket.AF_INET, 12) if near.version == 4 else (socket.AF_INET6, 8)
    ports, size = pack("!HH", source.port, destination.port), len(near.packed)
    return [
        *(_meta(15), _equals(bytes([family]))),
        *(_meta(16), _equals(bytes([socket.IPPROTO_TCP]))),
        # One after the other: a comparison takes at most 16 bytes.
        *(_payload(1, offset, size), _equals(near.packed)),
        *(_payload(1, offset + size, size), _equals(far.packed)),
        *(_payload(2, 0, 4), _equals(ports)),
    ]
