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

_ENTRY_POINTS = "cria.hooks"  # the group in which installed packages offer hooks
_SECONDS = 30.0
_TAIL_BYTES, _TAIL_LINES = 4096, 20  # how much of a failed program's output an error shows

Function = Callable[[HookCall], object]


class Hooks:
    """The hooks of one dump or restore, in the order in which the user named them.

    Before the change they run in that order. After it they run in reverse, and only those that ran
    before: the hook that ran first, before the others had changed anything, also runs last.
    """

    def __init__(
        self, hooks: Iterable[Hook], *, seconds: float = _SECONDS, listener: Listener | None = None
    ) -> None:
        """Raises UsageError for a hook that does not exist, HookUnsafe for one that others can change."""
        self._hooks = tuple(_named(hook, seconds) for hook in hooks)
        self._begun: list[tuple[str, Function]] = []
        self._tell = listener or nobody

    def __len__(self) -> int:
        return len(self._hooks)

    def begin(self, call: HookCall) -> None:
        """Run every hook for the first time, until one fails. Raises HookFailed."""
        for hook in self._hooks:
            self._begun.append(hook)
            _run(hook, call)

    def ask(self, call: HookCall) -> None:
        """Run every hook at a later stage that it may refuse, until one fails. Raises HookFailed."""
        for hook in self._begun:
            _run(hook, call)

    def tell(self, call: HookCall) -> None:
        """Run every hook after the change. A failure is only a warning: the change is made."""
        for hook in reversed(self._begun):
            try:
                _run(hook, call)
            except CriaError as error:
                self._tell(Warned(message=error.message, remedy=error.details))


def failure_of(error: BaseException | None) -> Failure:
    """Return how a hook is told of an exception."""
    if isinstance(error, CriaError):
        return Failure(code=error.code, message=error.message)
    return Failure(code=type(error).__name__, message=str(error))


def environment(call: HookCall) -> dict[str, str]:
    """Return the call as environment variables, some under the names that CRIU gives its action scripts."""
    variables = {
        "CRTOOLS_SCRIPT_ACTION": CRIU_ACTIONS.get(call.stage, call.stage),
        "CRTOOLS_IMAGE_DIR": call.images,
        "CRTOOLS_INIT_PID": call.pid,
        "CRIA_STAGE": call.stage,
        "CRIA_CHECKPOINT": call.checkpoint,
        "CRIA_PID": call.pid,
        "CRIA_URL": call.url,
    }
    return {name: str(value) for name, value in variables.items() if value is not None}


def check(path: Path) -> None:
    """Check that `path` is a program which only root or this user can change.

    Raises UsageError or HookUnsafe.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"the hook {path} does not exist", details=str(error)) from error
    if not (real.is_file() and os.access(real, os.X_OK)):
        raise UsageError(f"the hook {path} is not a program", remedy=f"chmod +x {path}")
    reasons = list(_unsafe(path))
    if reasons:
        raise HookUnsafe(
            f"others can change the hook {path}, so it is not run",
            details="\n".join(reasons),
            remedy=f"sudo chown root {real} && sudo chmod go-w {real}, in a directory of root's",
        )


def run_program(path: Path, call: HookCall, *, seconds: float) -> None:
    """Run the program `path` with the stage as its argument and the call as JSON on stdin.

    Raises HookFailed where it exits with another status than 0 or runs for more than `seconds`.
    """
    check(path)
    # Files, not pipes: the program may leave a process behind that keeps them open, or read nothing.
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as output:
        stdin.write(msgspec.json.encode(call) + b"\n")
        stdin.seek(0)
        try:
            status = _status(path, call, stdin, output, seconds)
        except subprocess.TimeoutExpired as error:
            raise HookFailed(
                f"the hook {path} did not end within {seconds:g} s at {call.stage} and was killed",
                details=_tail(output),
                remedy="give it longer: --hook-seconds SECONDS",
            ) from error
        except OSError as error:
            raise HookFailed(f"the hook {path} cannot be run", details=str(error)) from error
        if status != 0:
            how = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
            raise HookFailed(f"the hook {path} ended {how} at {call.stage}", details=_tail(output))


def _unsafe(path: Path) -> Iterator[str]:
    """Yield why others could change what is run: the file, a link to it, or a directory on the way."""
    for step, status in _way(path):
        is_link = stat.S_ISLNK(status.st_mode)
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.geteuid()):
            yield f"{step} belongs to uid {status.st_uid}"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (sticky or is_link):
            yield f"{step} has the mode {stat.S_IMODE(status.st_mode):04o}"


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield everything that the kernel passes on its way to `path`: directories, links, the file.

    The resolved path alone does not tell: a link that others can exchange may lead elsewhere when the
    program is executed.
    """
    here, names = Path("/"), list(reversed(path.absolute().parts[1:]))
    yield here, here.stat()
    while names:
        name = names.pop()
        if name == "..":
            here = here.parent
            continue
        status = (here / name).lstat()
        yield here / name, status
        if stat.S_ISLNK(status.st_mode):
            target = (here / name).readlink()
            names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path("/") if target.is_absolute() else here
        else:
            here /= name


def _status(path: Path, call: HookCall, stdin: IO[bytes], output: IO[bytes], seconds: float) -> int:
    process = subprocess.Popen(
        [path, call.stage],
        stdin=stdin,
        stdout=output,
        stderr=output,
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


def _tail(output: IO[bytes]) -> str | None:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _TAIL_BYTES))
    lines = output.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:]) or None


def _named(hook: Hook, seconds: float) -> tuple[str, Function]:
    """Return the name that errors give a hook, and the function that runs it."""
    if callable(hook):
        return getattr(hook, "__qualname__", repr(hook)), hook
    if isinstance(hook, str) and "/" not in hook:
        return hook, _installed(hook)
    path = Path(hook).absolute()
    check(path)
    return str(path), lambda call: run_program(path, call, seconds=seconds)


def _installed(name: str) -> Function:
    """Return the function that an installed package offers as `name`. Raises UsageError."""
    from importlib.metadata import entry_points  # reads the metadata of every installed package

    offered = entry_points(group=_ENTRY_POINTS)
    for entry_point in offered:
        if entry_point.name == name:
            function: Function = entry_point.load()
            return function
    raise UsageError(
        f"no installed package offers the hook {name}",
        details=f"installed packages offer: {', '.join(sorted(offered.names)) or 'none'}",
        remedy=f"to run a program, name it with a slash: --hook ./{name}",
        docs="hooks/README.md",
    )


def _run(hook: tuple[str, Function], call: HookCall) -> None:
    name, function = hook
    try:
        function(call)
    except (HookFailed, HookUnsafe, UsageError):
        raise
    except Exception as error:  # a user's function may raise anything
        raise HookFailed(
            f"the hook {name} failed at {call.stage}", details=f"{type(error).__name__}: {error}"
        ) from error
