"""What a user's hook is told of a dump or restore: the JSON on a program's stdin, a function's argument."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

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

# The names that CRIU gives these moments (criu(8), --action-script): scripts written for CRIU know them.
CRIU_ACTIONS: Final[dict[str, str]] = {
    "at-still-point": "pre-dump",
    "after-dump": "post-dump",
    "before-restore": "pre-restore",
    "after-restore": "post-resume",
}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why the operation failed: a code of docs/reference/errors.md, or the name of a Python exception."""

    code: str
    message: str


class HookCall(msgspec.Struct, frozen=True, kw_only=True):
    """Which stage a dump or restore has reached.

    `checkpoint` is the path of the checkpoint, also before it exists; `images` is the directory of
    CRIU's images, null before it exists. `pid` is the engine's root process on this host and `url` its
    HTTP API, null where there is none. `ports` maps each API port of the checkpoint to its new port.
    `clone` numbers the clones of one restore from 0. `error` is set only in the stages that end in
    -failed.
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
