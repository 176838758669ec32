"""User hooks: programs and Python functions that are run at the stages of a dump or a restore, and may refuse it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cria.errors import CriaError, HookFailed, HookUnsafe, UsageError
from cria.events import Listener, Warned, nobody
from cria.hooks import program
from cria.hooks.facts import Facts

GROUP = "cria.hooks"
SECONDS = 30.0
Function = Callable[[Facts], object]
Hook = Function | str | os.PathLike[str]


class Hooks:
    """The hooks of one dump or restore, in the order the user gave.

    What is told afterwards goes the other way round, and only to those that were asked before: who came
    first was told of an engine that the others had not touched yet, and is so again.
    """

    def __init__(
        self, hooks: Iterable[Hook], *, seconds: float = SECONDS, listener: Listener | None = None
    ) -> None:
        """Raises UsageError for a hook that is not there, HookUnsafe for one that others may write."""
        self._hooks = tuple(_named(hook, seconds) for hook in hooks)
        self._asked: list[tuple[str, Function]] = []
        self._tell = listener or nobody

    def begin(self, facts: Facts) -> None:
        """Run each; the first that fails ends it. Raises HookFailed."""
        for hook in self._hooks:
            self._asked.append(hook)
            _run(hook, facts)

    def ask(self, facts: Facts) -> None:
        """Likewise, later on. Raises HookFailed."""
        for hook in self._asked:
            _run(hook, facts)

    def tell(self, facts: Facts) -> None:
        """Run each, whatever the others do: what is done is done, so a failure is a warning."""
        for hook in reversed(self._asked):
            try:
                _run(hook, facts)
            except CriaError as error:
                self._tell(Warned(message=error.message, remedy=error.details))


def _named(hook: Hook, seconds: float) -> tuple[str, Function]:
    """A hook by the name that an error gives it, and what runs it."""
    if callable(hook):
        return getattr(hook, "__qualname__", repr(hook)), hook
    if isinstance(hook, str) and "/" not in hook:
        return hook, _installed(hook)
    path = Path(hook).absolute()
    program.check(path)
    return str(path), lambda facts: program.run(path, facts, seconds=seconds)


def _installed(name: str) -> Function:
    """The function that an installed package offers under `name`. Raises UsageError."""
    from importlib.metadata import entry_points

    offered = entry_points(group=GROUP)
    for each in offered:
        if each.name == name:
            function: Function = each.load()
            return function
    raise UsageError(
        f"no installed package offers the hook {name}",
        details=f"offered are: {', '.join(sorted(offered.names)) or 'none'}",
        remedy=f"a program is named with a slash: --hook ./{name}",
        docs="hooks/README.md",
    )


def _run(hook: tuple[str, Function], facts: Facts) -> None:
    name, function = hook
    try:
        function(facts)
    except (HookFailed, HookUnsafe, UsageError):
        raise
    except Exception as error:
        raise HookFailed(
            f"the hook {name} failed at {facts.stage}", details=f"{type(error).__name__}: {error}"
        ) from error
