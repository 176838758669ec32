"""Small inventories for checks that read nothing else."""

from typing import Any

from cria.model.inventory import Descriptor, Holder, Inventory, Process, Role, Socket
from cria.model.socket import Endpoint

HTTP = Role(name="HTTP API", confidence="certain")


def process(pid: int = 10, **facts: Any) -> Process:
    known: dict[str, Any] = {
        "parent": 1,
        "session": pid,
        "uid": 0,
        "started": 0.0,
        "command": ("vllm",),
        "name": "vllm",
        "threads": 1,
        "namespaces": {"mnt": 1, "net": 2},
        "state": "S",
    }
    return Process(pid=pid, **(known | facts))


def end(text: str) -> Endpoint:
    address, _, port = text.rpartition(":")
    return Endpoint(address=address, port=int(port))


def tcp(local: str, peer: str | None = None, **facts: Any) -> Socket:
    known: dict[str, Any] = {
        "netns": 2,
        "family": "ipv4",
        "protocol": "tcp",
        "state": "ESTABLISHED" if peer else "LISTEN",
        "inode": hash((local, peer)) & 0xFFFF,
        "uid": 0,
        "holders": (Holder(pid=10, fd=7),),
    }
    return Socket(local=end(local), peer=end(peer) if peer else None, **(known | facts))


def device(target: str, major: int, minor: int = 0) -> Descriptor:
    import os

    number = os.makedev(major, minor)
    return Descriptor(pid=10, fd=5, kind="device", target=target, device=number)


def inventory(*processes: Process, engine: bool = True, **held: Any) -> Inventory:
    return Inventory(taken=0.0, is_engine=engine, processes=processes or (process(),), **held)
