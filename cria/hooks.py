"""What a Python hook needs: HookCall, the argument of each call. See hooks/README.md."""

from cria.model.hooks import Failure, HookCall, Stage
from cria.requests import Hook

Facts = HookCall  # its name in cria 0.1

__all__ = ["Facts", "Failure", "Hook", "HookCall", "Stage"]
