"""Run a hook that is a program: nobody else may have written it, and it gets its time and no more."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from cria.errors import HookFailed, HookUnsafe, UsageError
from cria.hooks.facts import Facts, environment

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


def run(path: Path, facts: Facts, *, seconds: float) -> None:
    """Run it with the stage as its argument and the facts on stdin. Raises HookFailed.

    Files, not pipes, so that it may leave a process behind that holds its output, or not read its input.
    """
    check(path)
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as said:
        told.write(msgspec.json.encode(facts) + b"\n")
        told.seek(0)
        try:
            status = _status(path, facts, told, said, seconds)
        except subprocess.TimeoutExpired as error:
            raise HookFailed(
                f"the hook {path} did not end within {seconds:g} s at {facts.stage} and was killed",
                details=_tail(said),
                remedy="give it longer: --hook-seconds SECONDS",
            ) from error
        except OSError as error:
            raise HookFailed(f"the hook {path} cannot be run", details=str(error)) from error
        if status != 0:
            ended = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
            what = f"the hook {path} ended {ended} at {facts.stage}"
            raise HookFailed(what, details=_tail(said))


def _status(path: Path, facts: Facts, told: IO[bytes], said: IO[bytes], seconds: float) -> int:
    process = subprocess.Popen(
        [path, facts.stage],
        stdin=told,
        stdout=said,
        stderr=said,
        env=os.environ | environment(facts),
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
