"""Errors of the restore: exit statuses 50 to 59."""

from __future__ import annotations

from cria.errors.base import CriaError


class RestoreFailed(CriaError):
    """CRIU could not restore the checkpoint; nothing of it is left running."""

    code = "restore-failed"
    exit_status = 50
    default_docs = "docs/how-to/when-criu-fails.md"


class PortTaken(CriaError):
    """A port that the restored engine needs belongs to somebody else."""

    code = "port-taken"
    exit_status = 51
    default_remedy = "choose another port: -p OLD=NEW, or --ports auto"
    default_docs = "docs/explanation/ports.md"


class PortUnknown(CriaError):
    """A port that should move is not in the checkpoint."""

    code = "port-unknown"
    exit_status = 52
    default_docs = "docs/explanation/ports.md"


class PortPlanRefused(CriaError):
    """What was asked of the ports cannot work."""

    code = "port-plan-refused"
    exit_status = 53
    default_docs = "docs/explanation/ports.md"


class PidTaken(CriaError):
    """A process ID that the restored engine needs belongs to another process."""

    code = "pid-taken"
    exit_status = 54


class PathTaken(CriaError):
    """A path that the restored engine needs is in use by another process."""

    code = "path-taken"
    exit_status = 55


class Unhealthy(CriaError):
    """The restored engine does not answer as it did."""

    code = "unhealthy"
    exit_status = 56


class CanaryMismatch(CriaError):
    """The restored engine does not generate what it generated before its dump; it was taken down."""

    code = "canary-mismatch"
    exit_status = 57
    default_remedy = "take a new checkpoint; to look at this one: cria restore --no-canary"


class GpuNotGiven(CriaError):
    """The restored engine did not get its GPUs; it was taken down."""

    code = "gpu-not-given"
    exit_status = 58
    default_docs = "docs/how-to/gpu.md"
