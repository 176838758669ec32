"""One thing that cria run sets for an engine."""

from __future__ import annotations

import msgspec


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Something `cria run` sets for the engine, and why. `kept` when the user had set it already.

    An `option` is added to the command; anything else is a variable of the environment.
    """

    name: str
    value: str = ""
    why: str
    kept: bool = False
    option: bool = False

    def __str__(self) -> str:
        return self.name if self.option else f"{self.name}={self.value}"
