"""Turn CRIU's own error lines into errors that say what happened and how to mend it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cria.criu.client import CriuRefused
from cria.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CriaError,
    CriuUnsuitable,
    DumpFailed,
    EngineBlocked,
    NoSpace,
    PathTaken,
    PidTaken,
    PortTaken,
    PrivilegeMissing,
    RestoreFailed,
)


class Meaning(msgspec.Struct, frozen=True):
    """One line CRIU is known to write; groups of `pattern` fill `message` and `remedy` as {0}, {1}."""

    pattern: str
    kind: type[CriaError]
    message: str
    remedy: str | None = None


MEANINGS = (
    Meaning(
        r"anon_inode:\[io_uring\]",
        EngineBlocked,
        "the engine holds an io_uring ring, which CRIU cannot dump",
        "start the engine with: cria run -- CMD...",
    ),
    Meaning(
        r"In-flight connection \(l\) for (\S+)",
        EngineBlocked,
        "a client has connected to a listener but is not accepted yet (socket {0})",
        "try again, or drop such connections: --skip-in-flight",
    ),
    Meaning(
        r"Can't dump half of stream unix connection",
        EngineBlocked,
        "a unix stream connection has only one end inside the engine",
        "cria inspect PID names both ends; close the other end",
    ),
    Meaning(
        r"Unsupported proto (\d+)",
        EngineBlocked,
        "the engine holds a socket of protocol {0}, which CRIU cannot dump",
    ),
    Meaning(
        r"Can't dump ghost file (\S+) of (\d+) size",
        EngineBlocked,
        "a deleted file is too large to be kept in the image: {0} ({1} bytes)",
        "raise the limit: --ghost-limit BYTES",
    ),
    Meaning(
        r"Can't seize task|Unable to interrupt task|Unable to detach from|is already being traced",
        DumpFailed,
        "a process of the engine is being traced, or is not ours to trace",
        "end debuggers and profilers on it (py-spy, gdb, strace)",
    ),
    Meaning(
        r"Can't link remap to /?(/\S*)/[^/\s]+: File exists",
        PathTaken,
        "a link_remap.N that CRIU needs in {0} is there: CRIU alone, or a killed restore, left it",
        "if no images of CRIU alone need them: rm {0}/link_remap.*",
    ),
    Meaning(
        r"Can't fork for (\d+): File exists",
        PidTaken,
        "PID {0} is taken by another process",
        "end it, or restore into a PID namespace of its own",
    ),
    Meaning(
        r"Can't bind inet socket.*Address already in use",
        PortTaken,
        "a port of the checkpoint was taken while CRIU restored",
    ),
    Meaning(
        r"Can't connect inet socket back: Cannot assign requested address",
        PortTaken,
        "a connection of the checkpoint is alive on this host: its original still runs",
        "move all ports: --ports auto",
    ),
    Meaning(
        r"File (.+) has bad size (\d+) \(expect (\d+)\)",
        CheckpointMismatch,
        "{0} has {1} bytes, the engine knew it with {2}",
        "put the file back as it was; cria run opens logs so that they may grow",
    ),
    Meaning(
        r"File (\S+) has bad (mode|build-ID)",
        CheckpointMismatch,
        "{0} is not the file that the engine knew: another {1}",
        "put the file back as it was; cria doctor CHECKPOINT names every such file",
    ),
    Meaning(
        r"Can't open file (.+) on restore: No such file or directory",
        CheckpointMismatch,
        "{0} is missing; the engine had it open",
        "put the file back as it was",
    ),
    Meaning(
        r"Can't open file (.+): No such file or directory",
        CheckpointMismatch,
        "{0} is missing; the engine had it open",
        "put the file back as it was",
    ),
    Meaning(
        r"No space left on device",
        NoSpace,
        "CRIU ran out of disk space",
    ),
    Meaning(
        r"vdso: Unexpected rt vDSO area bounds|Could not initialize kernel features detection",
        CriuUnsuitable,
        "this CRIU is too old for this kernel",
    ),
    Meaning(
        r"Magic \(\S+\) from (\S+) not found|Unexpected EOF on (\S+)|Can't read image (\S+)",
        CheckpointDamaged,
        "an image of the checkpoint is damaged: {0}",
    ),
    Meaning(
        r"Operation not permitted",
        PrivilegeMissing,
        "CRIU was refused a privileged operation",
    ),
)

# The time stands before it at log level 3 and above only.
_ERROR_LINE = re.compile(r"^(?:\([ 0-9.]+\))?\s*(?:\d+: )?Error \([^)]*\):\s*(.*)$")


@contextmanager
def explained(written: Path, during: type[DumpFailed] | type[RestoreFailed]) -> Iterator[None]:
    """Whatever CRIU refuses in here becomes the error that its log at `written` tells of."""
    try:
        yield
    except CriuRefused as refused:
        raise explain(keep(written), str(refused), during=during) from refused


def keep(log: Path) -> Path:
    """Copy a log out of a directory that is about to be removed; returns where it is now."""
    directory = Path("/var/log/cria") if os.geteuid() == 0 else Path(tempfile.gettempdir())
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = directory / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{os.getpid()}-{log.name}"
    try:
        shutil.copyfile(log, kept)
    except FileNotFoundError:  # CRIU failed before it opened its log
        return log
    return kept


def error_lines(log: Path) -> list[str]:
    """What CRIU itself marked as an error, in order, without timestamps and source positions."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return []
    lines = [found.group(1) for line in text.splitlines() if (found := _ERROR_LINE.match(line))]
    return [line for line in lines if not _harmless(line)]


def explain(log: Path, said: str, *, during: type[DumpFailed] | type[RestoreFailed]) -> CriaError:
    """The error for a CRIU failure: the first meaning that one of its error lines has."""
    lines = error_lines(log)
    details = "\n".join(lines[:8]) or said
    for line in lines:
        for meaning in MEANINGS:
            found = re.search(meaning.pattern, line)
            if found is None:
                continue
            groups = [group for group in found.groups() if group is not None]
            return meaning.kind(
                meaning.message.format(*groups),
                details=details,
                remedy=meaning.remedy and meaning.remedy.format(*groups),
                log=str(log),
            )
    verb = "dump the engine" if during is DumpFailed else "restore the checkpoint"
    return during(f"CRIU could not {verb}", details=details, log=str(log))


def _harmless(line: str) -> bool:
    """Lines that CRIU writes as errors in runs that succeed."""
    return "Can't setup RLIMIT_NOFILE" in line or "Iptables configuration failed" in line
