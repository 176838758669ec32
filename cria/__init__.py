"""Checkpoint a running vLLM engine with CRIU and bring it back beside others, without port collisions.

checkpoint = cria.dump(pid, "checkpoints/qwen")
engine = checkpoint.restore(ports={8000: 8001})
print(engine.url)
"""

from cria.checkpoint import Checkpoint
from cria.dump import dump
from cria.engine.handle import Engine
from cria.errors import CriaError
from cria.restore import restore

__all__ = ["Checkpoint", "CriaError", "Engine", "PortPlan", "dump", "open_checkpoint", "restore"]

open_checkpoint = Checkpoint.open


def __getattr__(name: str) -> object:
    """PortPlan comes with the planner, which a program that only dumps need not import."""
    if name == "PortPlan":
        from cria.ports import PortPlan

        return PortPlan
    raise AttributeError(name)
