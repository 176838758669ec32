"""Errors of the checkpoint: exit statuses 40 to 49."""

from __future__ import annotations

from cria.errors.base import CriaError


class CheckpointMissing(CriaError):
    """There is no checkpoint at that path."""

    code = "checkpoint-missing"
    exit_status = 40
    default_remedy = "name the directory that cria dump printed"


class CheckpointDamaged(CriaError):
    """The checkpoint is truncated or was changed."""

    code = "checkpoint-damaged"
    exit_status = 41
    default_remedy = "take a new checkpoint: cria dump PID -o DIR"


class CheckpointNewer(CriaError):
    """The checkpoint was written by a newer cria."""

    code = "checkpoint-newer"
    exit_status = 42
    default_remedy = "upgrade cria"


class CheckpointMismatch(CriaError):
    """The checkpoint does not fit this host."""

    code = "checkpoint-mismatch"
    exit_status = 43


class NotACheckpoint(CriaError):
    """The file is neither a checkpoint nor a container runtime's archive of one."""

    code = "not-a-checkpoint"
    exit_status = 44
    default_remedy = "name the archive that the kubelet or the container runtime wrote"


class CannotShare(CriaError):
    """Clones cannot share the memory of this checkpoint, or not in that place."""

    code = "cannot-share"
    exit_status = 45
    default_remedy = "restore without --share-memory"
    default_docs = "docs/how-to/shared-memory.md"
