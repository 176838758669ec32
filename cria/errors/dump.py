"""Errors of the dump: exit statuses 30 to 39."""

from __future__ import annotations

from cria.errors.base import CriaError


class DumpFailed(CriaError):
    """CRIU could not dump the engine; it goes on running."""

    code = "dump-failed"
    exit_status = 30
    default_docs = "docs/how-to/when-criu-fails.md"


class CheckpointExists(CriaError):
    """The output path is taken."""

    code = "checkpoint-exists"
    exit_status = 31


class DumpIncomplete(CriaError):
    """CRIU said yes, but the images lack something that the engine holds."""

    code = "dump-incomplete"
    exit_status = 32
