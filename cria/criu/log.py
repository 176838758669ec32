"""Turn the error lines in CRIU's log into errors that say what happened and what to do."""

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


class KnownError(msgspec.Struct, frozen=True, kw_only=True):
    """An error that CRIU writes, and what it means: `line` is a pattern for the text after the position.

    The groups of `line` that matched fill `message` and `remedy` as {0}, {1}, ...
    """

    line: str
    kind: type[CriaError]
    message: str
    remedy: str | None = None


# The first entry that fits the first error line decides: CRIU writes the cause before what follows from it.
KNOWN_ERRORS = (
    # dump_unsupp_fd in criu/files-ext.c
    KnownError(
        line=r"anon_inode:\[io_uring\]",
        kind=EngineBlocked,
        message="the engine holds an io_uring ring, which CRIU cannot dump",
        remedy="start the engine with: cria run -- CMD...",
    ),
    # can_dump_inet_sk in criu/sk-inet.c
    KnownError(
        line=r"In-flight connection \(l\) for (\S+)",
        kind=EngineBlocked,
        message="a client has connected to a listener that has not accepted it yet (socket {0})",
        remedy="try again, or drop such connections: --skip-in-flight",
    ),
    # __dump_external_socket in criu/sk-unix.c
    KnownError(
        line=r"Can't dump half of stream unix connection",
        kind=EngineBlocked,
        message="a unix stream connection has only one end inside the engine",
        remedy="cria inspect PID names both ends; close the other end",
    ),
    # can_dump_ipproto in criu/sk-inet.c
    KnownError(
        line=r"Unsupported proto (\d+)",
        kind=EngineBlocked,
        message="the engine holds a socket of protocol {0}, which CRIU cannot dump",
    ),
    # dump_ghost_remap in criu/files-reg.c
    KnownError(
        line=r"Can't dump ghost file (\S+) of (\d+) size",
        kind=EngineBlocked,
        message="a deleted file is too large for the images: {0} ({1} bytes)",
        remedy="start the engine so that it keeps this file, or on a smaller scale",
    ),
    # compel_interrupt_task: where ptrace(2) refuses to attach, the first error is about detaching again.
    KnownError(
        line=r"Unable to interrupt task|Unable to detach from",
        kind=DumpFailed,
        message="a process of the engine is being traced, or may not be traced by this user",
        remedy="end debuggers and profilers on it (py-spy, gdb, strace)",
    ),
    # create_link_remap in criu/files-reg.c
    KnownError(
        line=r"Can't link remap to /?(/\S*)/[^/\s]+: File exists",
        kind=PathTaken,
        message="a link_remap.N that CRIU needs in {0} is there: CRIU alone, or a killed restore, left it",
        remedy="if no images of CRIU alone need them: rm {0}/link_remap.*",
    ),
    # fork_with_pid in criu/cr-restore.c
    KnownError(
        line=r"Can't fork for (\d+): File exists",
        kind=PidTaken,
        message="PID {0} is taken by another process",
        remedy="end that process, or restore into new namespaces: --isolate always",
    ),
    # inet_bind in criu/sk-inet.c
    KnownError(
        line=r"Can't bind inet socket.*Address already in use",
        kind=PortTaken,
        message="a port of the checkpoint was taken while CRIU restored",
    ),
    # libsoccr_set_sk_data_noq in soccr/soccr.c
    KnownError(
        line=r"Can't connect inet socket back: Cannot assign requested address",
        kind=PortTaken,
        message="a connection of the checkpoint is alive on this host: the original still runs",
        remedy="move all ports: --ports auto",
    ),
    # validate_file, validate_with_build_id, open_path and do_open_reg_noseek_flags in criu/files-reg.c
    KnownError(
        line=r"File (.+) has bad size (\d+) \(expect (\d+)\)",
        kind=CheckpointMismatch,
        message="{0} has {1} bytes, and had {2} at the dump",
        remedy="put the file back as it was; cria run opens logs so that they may grow",
    ),
    KnownError(
        line=r"File (\S+) has bad (mode|build-ID)",
        kind=CheckpointMismatch,
        message="{0} is not the file of the dump: it has another {1}",
        remedy="put the file back as it was; cria doctor CHECKPOINT names every such file",
    ),
    KnownError(
        line=r"Can't open file (.+?)(?: on restore)?: No such file or directory",
        kind=CheckpointMismatch,
        message="{0} is missing; the engine had it open",
        remedy="put the file back as it was",
    ),
    # strerror(ENOSPC), wherever CRIU writes
    KnownError(
        line=r"No space left on device",
        kind=NoSpace,
        message="CRIU ran out of disk space",
    ),
    # criu/vdso.c, criu/crtools.c: CRIU before 4.1 on a kernel since 6.13
    KnownError(
        line=r"Unexpected rt vDSO area bounds|Could not initialize kernel features detection",
        kind=CriuUnsuitable,
        message="this CRIU is too old for this kernel",
    ),
    # img_check_magic in criu/image.c, do_pb_read_one in criu/protobuf.c
    KnownError(
        line=r"agic doesn't match for (\S+)"
        r"|Unexpected EOF on (\S+)"
        r"|Read -?\d+ bytes while \d+ expected (?:on|from) (\S+)"
        r"|Failed unpacking object \S+ from (\S+)",
        kind=CheckpointDamaged,
        message="an image of the checkpoint is damaged: {0}",
    ),
    # strerror(EPERM)
    KnownError(
        line=r"Operation not permitted",
        kind=PrivilegeMissing,
        message="CRIU was refused a privileged operation",
    ),
)

# "(00.013771)   4921: Error (criu/cr-restore.c:1230): Can't fork ...". The time is there from log level 3 on.
_ERROR_LINE = re.compile(r"^(?:\([ 0-9.]+\))?\s*(?:\d+: )?Error \([^)]*\):\s*(.*)$")

# CRIU writes these as errors in runs that succeed: criu/util.c tries to raise the limit without
# CAP_SYS_RESOURCE; criu/netfilter.c deletes rules of a dump on another host, or of ports that moved.
_HARMLESS = ("Can't setup RLIMIT_NOFILE", "Iptables configuration failed")

_SHOWN_LINES = 8


@contextmanager
def explain_failure(log: Path, during: type[DumpFailed] | type[RestoreFailed]) -> Iterator[None]:
    """Turn a CriuRefused into the error that CRIU's log tells of. The log is copied to where it stays."""
    try:
        yield
    except CriuRefused as refused:
        raise error_of(keep(log), str(refused), during=during) from refused


def keep(log: Path) -> Path:
    """Copy a log out of a directory that is about to be removed; return where the copy is."""
    directory = Path("/var/log/cria") if os.geteuid() == 0 else Path(tempfile.gettempdir())
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = directory / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{os.getpid()}-{log.name}"
    try:
        shutil.copyfile(log, copy)
    except FileNotFoundError:  # CRIU failed before it opened its log
        return log
    return copy


def error_lines(log: Path) -> list[str]:
    """Return the lines that CRIU marked as errors, in order, without time and source position."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return []
    matches = map(_ERROR_LINE.match, text.splitlines())
    lines = [match.group(1) for match in matches if match]
    return [line for line in lines if not any(harmless in line for harmless in _HARMLESS)]


def error_of(
    log: Path, answer: str, *, during: type[DumpFailed] | type[RestoreFailed]
) -> CriaError:
    """Return the error for a failure of CRIU: of the first error line that is known.

    `answer` is CRIU's own, for where the log says nothing.
    """
    lines = error_lines(log)
    details = "\n".join(lines[:_SHOWN_LINES]) or answer
    for line in lines:
        for error in KNOWN_ERRORS:
            match = re.search(error.line, line)
            if match is not None:
                groups = [group for group in match.groups() if group is not None]
                return error.kind(
                    error.message.format(*groups),
                    details=details,
                    remedy=error.remedy and error.remedy.format(*groups),
                    log=str(log),
                )
    verb = "dump the engine" if during is DumpFailed else "restore the checkpoint"
    return during(f"CRIU could not {verb}", details=details, log=str(log))
