"""Checkpoint a running vLLM engine with CRIU and restore it beside others, without port collisions.

checkpoint = cria.dump(pid, "checkpoints/qwen")
engine = checkpoint.restore(ports={8000: 8001})
print(engine.url)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cria.api import (
        Checkpoint,
        dump,
        open_checkpoint,
        pack,
        restore,
        restore_replicas,
        unpack,
    )
    from cria.engine.handle import Engine
    from cria.errors import CriaError
    from cria.network.plan import PortPlan

__all__ = [
    "Checkpoint",
    "CriaError",
    "Engine",
    "PortPlan",
    "dump",
    "open_checkpoint",
    "pack",
    "restore",
    "restore_replicas",
    "unpack",
]

_ELSEWHERE = {
    "CriaError": "cria.errors",
    "Engine": "cria.engine.handle",
    "PortPlan": "cria.network.plan",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: `cria --help` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module 'cria' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_ELSEWHERE.get(name, "cria.api")), name)
    globals()[name] = value
    return value
