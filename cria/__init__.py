"""Checkpoint a running vLLM engine with CRIU and bring it back beside others, without port collisions.

checkpoint = cria.dump(pid, "checkpoints/qwen")
engine = checkpoint.restore(ports={8000: 8001})
print(engine.url)
"""

import importlib
from typing import TYPE_CHECKING, Any

from cria.errors import CriaError
from cria.operations.dump.steps import dump
from cria.operations.restore.steps import restore

if TYPE_CHECKING:
    from cria.checkpoint.handle import Checkpoint
    from cria.engine.handle import Engine
    from cria.network.plan import PortPlan
    from cria.operations.pack import pack, unpack

    open_checkpoint = Checkpoint.open

__all__ = [
    "Checkpoint",
    "CriaError",
    "Engine",
    "PortPlan",
    "dump",
    "open_checkpoint",
    "pack",
    "restore",
    "unpack",
]

# What not every program needs: a command that is short shall not wait for it.
_IMPORTED_WHEN_USED = {
    "Checkpoint": "cria.checkpoint.handle",
    "Engine": "cria.engine.handle",
    "PortPlan": "cria.ports",
    "pack": "cria.operations.pack",
    "unpack": "cria.operations.pack",
}


def __getattr__(name: str) -> Any:
    if name == "open_checkpoint":
        return __getattr__("Checkpoint").open
    if name not in _IMPORTED_WHEN_USED:
        raise AttributeError(f"module 'cria' has no attribute {name!r}")
    return getattr(importlib.import_module(_IMPORTED_WHEN_USED[name]), name)
