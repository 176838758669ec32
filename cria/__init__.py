"""Checkpoint a running vLLM engine with CRIU and bring it back beside others, without port collisions.

checkpoint = cria.dump(pid, "checkpoints/qwen")
engine = checkpoint.restore(ports={8000: 8001})
print(engine.url)
"""

from typing import TYPE_CHECKING

from cria.checkpoint import Checkpoint
from cria.dump import dump
from cria.errors import CriaError
from cria.restore import restore

if TYPE_CHECKING:
    from cria.engine.handle import Engine
    from cria.packing import pack, unpack
    from cria.ports import PortPlan

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

open_checkpoint = Checkpoint.open


def __getattr__(name: str) -> object:
    """What not every program needs: `cria --help` imports none of it."""
    if name == "PortPlan":
        from cria.ports import PortPlan

        return PortPlan
    if name == "Engine":
        from cria.engine.handle import Engine

        return Engine
    if name in ("pack", "unpack"):
        from cria import packing

        return getattr(packing, name)
    raise AttributeError(name)
