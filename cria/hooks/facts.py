"""What a hook is told: the JSON document on a program's stdin, the argument of a Python function."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cria.errors import CriaError

Stage = Literal[
    "before-dump",
    "at-still-point",
    "after-resume",
    "after-dump",
    "dump-failed",
    "before-restore",
    "after-restore",
    "restore-failed",
]

# What CRIU calls the moment, where it has one: an action script that was written for CRIU knows these.
CRIU_ACTIONS: Final[dict[str, str]] = {
    "at-still-point": "pre-dump",
    "after-dump": "post-dump",
    "before-restore": "pre-restore",
    "after-restore": "post-resume",
}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why it failed: the code of docs/reference/errors.md, or the name of a Python exception."""

    code: str
    message: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Where a dump or restore is. `checkpoint` is its path, also before there is one; `images` where CRIU's
    images are or will be, null before that is made. `pid` is the engine's root process on this host, null
    before there is one; `url` its HTTP API, null where it has none. `ports` maps each published port of the checkpoint to the new one;
    `clone` counts the clones of one restore from 0. `error` is null but in the stages that end in -failed.
    """

    schema_version: Literal[1] = 1
    stage: Stage
    operation: Literal["dump", "restore"]
    checkpoint: str
    images: str | None = None
    pid: int | None = None
    url: str | None = None
    leave_running: bool = False
    ports: dict[str, int] = {}
    clone: int = 0
    error: Failure | None = None


def why(error: BaseException | None) -> Failure:
    """The failure that an exception stands for."""
    if isinstance(error, CriaError):
        return Failure(code=error.code, message=error.message)
    return Failure(code=type(error).__name__, message=str(error))


def environment(facts: Facts) -> dict[str, str]:
    """The same for a program that reads no JSON, with the names that CRIU gives its action scripts."""
    known = {
        "CRTOOLS_SCRIPT_ACTION": CRIU_ACTIONS.get(facts.stage, facts.stage),
        "CRTOOLS_IMAGE_DIR": facts.images,
        "CRTOOLS_INIT_PID": facts.pid,
        "CRIA_STAGE": facts.stage,
        "CRIA_CHECKPOINT": facts.checkpoint,
        "CRIA_PID": facts.pid,
        "CRIA_URL": facts.url,
    }
    return {name: str(value) for name, value in known.items() if value is not None}
