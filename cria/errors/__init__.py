"""Every error cria raises: what happened, why, how to mend it, and the exit status it ends with.

A kind belongs in the module of its class, and in the list here.
"""

from __future__ import annotations

from cria.errors.base import CriaError, UsageError
from cria.errors.checkpoint import (
    CannotShare,
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointMissing,
    CheckpointNewer,
    NotACheckpoint,
)
from cria.errors.cluster import (
    CheckpointApiMissing,
    CheckpointTimedOut,
    ClusterForbids,
    ClusterUnreachable,
    KubernetesMissing,
    NoSuchPod,
    PodNotRunning,
    SomeNotCheckpointed,
)
from cria.errors.dump import CheckpointExists, DumpFailed, DumpIncomplete
from cria.errors.engine import (
    AmbiguousTarget,
    EngineBlocked,
    EngineBusy,
    EngineFailed,
    GpuLost,
    GpuNotTaken,
    NoSuchProcess,
    NotAnEngine,
    QuiesceFailed,
)
from cria.errors.host import (
    CriuMissing,
    CriuUnsuitable,
    CudaUnsuitable,
    HookFailed,
    HookUnsafe,
    NodeUnsuitable,
    NoSpace,
    NotWritable,
    PrivilegeMissing,
    PycriuMissing,
)
from cria.errors.restore import (
    CanaryMismatch,
    GpuNotGiven,
    PathTaken,
    PidTaken,
    PortPlanRefused,
    PortTaken,
    PortUnknown,
    RestoreFailed,
    Unhealthy,
)

__all__ = [
    "AmbiguousTarget",
    "CanaryMismatch",
    "CannotShare",
    "CheckpointApiMissing",
    "CheckpointDamaged",
    "CheckpointExists",
    "CheckpointMismatch",
    "CheckpointMissing",
    "CheckpointNewer",
    "CheckpointTimedOut",
    "ClusterForbids",
    "ClusterUnreachable",
    "CriaError",
    "CriuMissing",
    "CriuUnsuitable",
    "CudaUnsuitable",
    "DumpFailed",
    "DumpIncomplete",
    "EngineBlocked",
    "EngineBusy",
    "EngineFailed",
    "GpuLost",
    "GpuNotGiven",
    "GpuNotTaken",
    "HookFailed",
    "HookUnsafe",
    "KubernetesMissing",
    "NoSpace",
    "NoSuchPod",
    "NoSuchProcess",
    "NodeUnsuitable",
    "NotACheckpoint",
    "NotAnEngine",
    "NotWritable",
    "PathTaken",
    "PidTaken",
    "PodNotRunning",
    "PortPlanRefused",
    "PortTaken",
    "PortUnknown",
    "PrivilegeMissing",
    "PycriuMissing",
    "QuiesceFailed",
    "RestoreFailed",
    "SomeNotCheckpointed",
    "Unhealthy",
    "UsageError",
    "all_kinds",
]


def all_kinds() -> list[type[CriaError]]:
    """Every kind of error, by exit status: the table in the documentation is made from it."""
    return sorted(CriaError.__subclasses__(), key=lambda kind: kind.exit_status)
