"""What an engine's own memory goes on knowing after its sockets have moved."""

from __future__ import annotations

from cria.ports.model import PortSocket

NCCL_STAYS = "NCCL keeps the addresses of its peers in memory and dials them again"

# By a word in the role; the first that fits. Sources: the modules named in docs/explanation/ports.md.
_KNOWN = (
    ("nccl", NCCL_STAYS),
    ("zmq", "a ZMQ client whose connection breaks dials port {old} again"),
    ("tcpstore", "a store client that is cloned, or a new process group, dials port {old}"),
    ("gloo", "only a new process group, or one with TORCH_GLOO_LAZY_INIT=1, dials port {old}"),
    ("http", "the log and the engine's own messages name port {old}"),
)


def of(socket: PortSocket, new: int) -> str:
    """What still knows the old port of `socket` when it becomes `new`; empty where nothing does."""
    if new == socket.local.port or socket.peer is not None:
        return ""
    role = socket.role.lower().replace(" ", "")
    for word, text in _KNOWN:
        if word in role:
            return text.format(old=socket.local.port)
    return ""


def pinned(role: str, state: str) -> str:
    """Why a socket of that role cannot move, or nothing."""
    return NCCL_STAYS if state == "LISTEN" and "nccl" in role.lower() else ""
