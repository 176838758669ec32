"""Errors of the engine: exit statuses 20 to 29."""

from __future__ import annotations

from cria.errors.base import CriaError


class NoSuchProcess(CriaError):
    """The process that was named does not exist."""

    code = "no-such-process"
    exit_status = 20
    default_remedy = "list the engines of this host: cria ps"


class NotAnEngine(CriaError):
    """The process that was named does not belong to a vLLM engine."""

    code = "not-an-engine"
    exit_status = 21
    default_remedy = "list the engines of this host: cria ps"


class AmbiguousTarget(CriaError):
    """No engine, or more than one, fits what was named."""

    code = "ambiguous-target"
    exit_status = 22
    default_remedy = "name one by its PID: cria ps"


class EngineBlocked(CriaError):
    """The engine holds something that CRIU cannot dump."""

    code = "engine-blocked"
    exit_status = 23
    default_docs = "docs/reference/blockers.md"


class EngineBusy(CriaError):
    """Another cria is at work on this engine."""

    code = "engine-busy"
    exit_status = 24
    default_remedy = "wait until the other dump is done"


class EngineFailed(CriaError):
    """The engine ended, or did not become healthy in time."""

    code = "engine-failed"
    exit_status = 25


class QuiesceFailed(CriaError):
    """The engine could not be brought to a still point; it was told to go on."""

    code = "quiesce-failed"
    exit_status = 26
    default_remedy = "dump it as it is: --no-quiesce"


class GpuNotTaken(CriaError):
    """The engine's GPU memory could not be taken; every process has its GPU and runs on."""

    code = "gpu-not-taken"
    exit_status = 27
    default_docs = "docs/how-to/gpu.md"


class GpuLost(CriaError):
    """Processes of the engine lost their GPU and cannot be given it back."""

    code = "gpu-lost"
    exit_status = 28
    default_remedy = "end the engine, then restore it or start it anew: cria stop PID"
    default_docs = "docs/how-to/gpu.md"
