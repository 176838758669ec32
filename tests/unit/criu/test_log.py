"""CRIU's error lines, as it writes them, become errors with a meaning."""

import re
from pathlib import Path

import pytest

from cria.criu import log
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

LINES = [
    (
        "(00.110000) Error (criu/files-ext.c:99): Can't dump file 9 of that type [20000] (unknown anon_inode:[io_uring])",
        EngineBlocked,
        "io_uring",
    ),
    (
        "(00.110000) Error (criu/sk-inet.c:187): inet: In-flight connection (l) for 2a1f",
        EngineBlocked,
        "2a1f",
    ),
    (
        "(00.110000) Error (criu/sk-unix.c:880): unix: Can't dump half of stream unix connection.",
        EngineBlocked,
        "unix stream",
    ),
    (
        "(00.013771) Error (criu/cr-restore.c:1230): Can't fork for 4921: File exists",
        PidTaken,
        "4921",
    ),
    (
        "(00.020000)   4921: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 27): Address already in use",
        PortTaken,
        "taken",
    ),
    (
        "(00.020000)   4921: Error (soccr/soccr.c:529): Can't connect inet socket back: Cannot assign requested address",
        PortTaken,
        "alive",
    ),
    (
        "(00.020000)   4921: Error (criu/files-reg.c:2191): File home/engine.log has bad size 17578 (expect 16803)",
        CheckpointMismatch,
        "17578",
    ),
    (
        "(00.020000)   4921: Error (criu/files-reg.c:2190): File usr/lib/libc.so.6 has bad build-ID",
        CheckpointMismatch,
        "libc.so.6",
    ),
    (
        "(00.020000)   4921: Error (criu/files-reg.c:2198): File home/data has bad mode 0100600 (expect 0100644)",
        CheckpointMismatch,
        "another mode",
    ),
    (
        "(00.020000)   4921: Error (criu/files-reg.c:2180): Can't open file dev/shm/psm_1 on restore: No such file or directory",
        CheckpointMismatch,
        "psm_1",
    ),
    (
        "(00.020000) Error (criu/image.c:500): Can't write: No space left on device",
        NoSpace,
        "space",
    ),
    (
        "(00.000300) Error (criu/vdso.c:100): vdso: Unexpected rt vDSO area bounds",
        CriuUnsuitable,
        "kernel",
    ),
    (
        "(00.020000) Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 2a1f",
        EngineBlocked,
        "262",
    ),
    (
        "(00.020000) Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/gone of 600000000 size, increase limit",
        EngineBlocked,
        "600000000",
    ),
    (
        "(00.041781) Error (compel/src/lib/infect.c:426): Unable to detach from 5164: No such process",
        DumpFailed,
        "traced",
    ),
    (
        "(00.020000) Error (criu/files-reg.c:1159): Can't link remap to /dev/shm/sem.a: File exists",
        PathTaken,
        "/dev/shm",
    ),
    (
        "(00.020000) Error (criu/image.c:563): Magic doesn't match for pstree.img",
        CheckpointDamaged,
        "pstree.img",
    ),
    (
        "(00.020000) Error (criu/image.c:554): Head magic doesn't match for files.img",
        CheckpointDamaged,
        "files.img",
    ),
    (
        "(00.020000) Error (criu/protobuf.c:91): Read 3 bytes while 90 expected from core-7.img: Success",
        CheckpointDamaged,
        "core-7.img",
    ),
    (
        "(00.020000) Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted",
        PrivilegeMissing,
        "privileged",
    ),
]


def test_every_known_error_has_an_example() -> None:
    examples = "\n".join(line for line, _, _ in LINES)

    assert [error.line for error in log.KNOWN_ERRORS if not re.search(error.line, examples)] == []


@pytest.mark.parametrize("with_time", [True, False], ids=["log level 4", "log level 2"])
@pytest.mark.parametrize(("line", "kind", "word"), LINES, ids=[word for _, _, word in LINES])
def test_an_error_line_becomes_an_error(
    tmp_path: Path, line: str, kind: type[CriaError], word: str, with_time: bool
) -> None:
    path = tmp_path / "criu.log"
    path.write_text(
        f"(00.000100) some progress\n{line}\n" if with_time else f"{line.partition(')')[2]}\n"
    )

    error = log.error_of(path, "DUMP failed", during=DumpFailed)

    assert type(error) is kind
    assert word in error.message
    assert error.log == str(path)
    assert error.details


def test_an_unknown_failure_shows_what_criu_wrote(tmp_path: Path) -> None:
    path = tmp_path / "criu.log"
    path.write_text("(00.1) Error (criu/x.c:1): a thing nobody has seen\n")

    error = log.error_of(path, "restore failed", during=RestoreFailed)

    assert type(error) is RestoreFailed
    assert error.details == "a thing nobody has seen"


def test_harmless_error_lines_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "criu.log"
    path.write_text(
        "(00.1) Error (criu/util.c:1532): rlimit: Can't setup RLIMIT_NOFILE for self: no\n"
    )

    assert log.error_lines(path) == []


def test_without_a_log_the_answer_of_criu_is_shown(tmp_path: Path) -> None:
    error = log.error_of(tmp_path / "none.log", "CRIU ended", during=DumpFailed)

    assert error.details == "CRIU ended"
