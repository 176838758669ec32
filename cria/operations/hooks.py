"""Run a user's hooks, programs or Python functions, at the stages of a dump or a restore."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from cria.errors import CriaError, HookFailed, HookUnsafe, UsageError
from cria.events import Listener, Warned, nobody
from cria.model.hooks import CRIU_ACTIONS, Failure, HookCall
from cria.requests import Hook


def why(error: BaseException | None) -> Failure:
    """The failure that an exception stands for."""
    if isinstance(error, CriaError):
        return Failure(code=error.code, message=error.message)
    return Failure(code=type(error).__name__, message=str(error))


def environment(call: HookCall) -> dict[str, str]:
    """The same for a program that reads no JSON, with the names that CRIU gives its action scripts."""
    known = {
        "CRTOOLS_SCRIPT_ACTION": CRIU_ACTIONS.get(call.stage, call.stage),
        "CRTOOLS_IMAGE_DIR": call.images,
        "CRTOOLS_INIT_PID": call.pid,
        "CRIA_STAGE": call.stage,
        "CRIA_CHECKPOINT": call.checkpoint,
        "CRIA_PID": call.pid,
        "CRIA_URL": call.url,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


_SHOWN_BYTES, _SHOWN_LINES = 4096, 20


def check(path: Path) -> None:
    """Raises UsageError when `path` is no program, HookUnsafe when others may change what it does."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"there is no hook {path}", details=str(error)) from error
    if not (real.is_file() and os.access(real, os.X_OK)):
        raise UsageError(f"the hook {path} is no program", remedy=f"chmod +x {path}")
    found = list(_unsafe(real))
    if found:
        raise HookUnsafe(
            f"the hook {path} may be changed by others, and is not run",
            details="\n".join(found),
            remedy=f"sudo chown root {real} && sudo chmod go-w {real}, in a directory of root's",
        )


def _unsafe(real: Path) -> Iterator[str]:
    """Why somebody else decides what is run: the file's mode, or that of a directory it is reached by."""
    for each in (real, *real.parents):
        status = each.stat()
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.geteuid()):
            yield f"{each} belongs to uid {status.st_uid}"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            yield f"{each} has the mode {stat.S_IMODE(status.st_mode):04o}"


def run(path: Path, call: HookCall, *, seconds: float) -> None:
    """Run it with the stage as its argument and the call on stdin. Raises HookFailed.

    Files, not pipes, so that it may leave a process behind that holds its output, or not read its input.
    """
    check(path)
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as said:
        told.write(msgspec.json.encode(call) + b"\n")
        told.seek(0)
        try:
            status = _status(path, call, told, said, seconds)
        except subprocess.TimeoutExpired as error:
            raise HookFailed(
                f"the hook {path} did not end within {seconds:g} s at {call.stage} and was killed",
                details=_tail(said),
                remedy="give it longer: --hook-seconds SECONDS",
            ) from error
        except OSError as error:
            raise HookFailed(f"the hook {path} cannot be run", details=str(error)) from error
        if status != 0:
            ended = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
            what = f"the hook {path} ended {ended} at {call.stage}"
            raise HookFailed(what, details=_tail(said))


def _status(path: Path, call: HookCall, told: IO[bytes], said: IO[bytes], seconds: float) -> int:
    process = subprocess.Popen(
        [path, call.stage],
        stdin=told,
        stdout=said,
        stderr=said,
        env=os.environ | environment(call),
        cwd="/",
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _tail(said: IO[bytes]) -> str | None:
    """The end of what it printed."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _SHOWN_BYTES))
    lines = said.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_SHOWN_LINES:]) or None


GROUP = "cria.hooks"
SECONDS = 30.0
Function = Callable[[HookCall], object]


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

    def __len__(self) -> int:
        return len(self._hooks)

    def begin(self, call: HookCall) -> None:
        """Run each; the first that fails ends it. Raises HookFailed."""
        for hook in self._hooks:
            self._asked.append(hook)
            _run(hook, call)

    def ask(self, call: HookCall) -> None:
        """Likewise, later on. Raises HookFailed."""
        for hook in self._asked:
            _run(hook, call)

    def tell(self, call: HookCall) -> None:
        """Run each, whatever the others do: what is done is done, so a failure is a warning."""
        for hook in reversed(self._asked):
            try:
                _run(hook, call)
            except CriaError as error:
                self._tell(Warned(message=error.message, remedy=error.details))


def _named(hook: Hook, seconds: float) -> tuple[str, Function]:
    """A hook by the name that an error gives it, and what runs it."""
    if callable(hook):
        return getattr(hook, "__qualname__", repr(hook)), hook
    if isinstance(hook, str) and "/" not in hook:
        return hook, _installed(hook)
    path = Path(hook).absolute()
    check(path)
    return str(path), lambda call: run(path, call, seconds=seconds)


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


def _run(hook: tuple[str, Function], call: HookCall) -> None:
    name, function = hook
    try:
        function(call)
    except (HookFailed, HookUnsafe, UsageError):
        raise
    except Exception as error:
        raise HookFailed(
            f"the hook {name} failed at {call.stage}", details=f"{type(error).__name__}: {error}"
        ) from error
