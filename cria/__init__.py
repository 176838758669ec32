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
    from cria.ports import PortPlan

__all__ = ["Checkpoint", "CriaError", "Engine", "PortPlan", "dump", "open_checkpoint", "restore"]

open_checkpoint = Checkpoint.open


def __getattr__(name: str) -> object:
    """Types that calls return; a program, or `cria --help`, need not import them to begin."""
    if name == "PortPlan":
        from cria.ports import PortPlan

        return PortPlan
    if name == "Engine":
        from cria.engine.handle import Engine

        return Engine
    raise AttributeError(name)
