"""cria run hides io_uring, keeps what the user set, appends the output to the log, and reports failures."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from cria.engine.launch.launcher import engine_settings, last_lines, launch, on_one_node
from cria.errors import NotWritable, UsageError

CRIA_RUN = [sys.executable, "-m", "cria", "run", "--log"]
ASK_IO_URING = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(425, 1, ctypes.create_string_buffer(256))
print("errno", ctypes.get_errno(), "still works", bool(open(sys.executable, "rb").read(1)))
"""


def run_to_end(log: Path, *arguments: str) -> str:
    launched = launch([sys.executable, "-c", *arguments], log)
    launched.process.wait(timeout=30)
    return log.read_text()


def test_io_uring_is_missing_for_the_engine_and_other_calls_work(tmp_path: Path) -> None:
    assert run_to_end(tmp_path / "log", ASK_IO_URING) == f"errno {errno.ENOSYS} still works True\n"


def test_io_uring_is_missing_for_its_children_too(tmp_path: Path) -> None:
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ASK_IO_URING!r}])"

    assert "errno 38" in run_to_end(tmp_path / "log", program)


def test_the_engine_has_a_session_of_its_own_and_an_empty_stdin(tmp_path: Path) -> None:
    program = "import os, sys; print(os.getsid(0) == os.getpid(), repr(sys.stdin.read()))"

    assert run_to_end(tmp_path / "log", program) == "True ''\n"


def test_output_is_appended_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")

    assert run_to_end(log, "print('after')") == "before\nafter\n"


def test_a_variable_that_the_user_set_is_kept() -> None:
    chosen = {
        s.name: s for s in engine_settings(["vllm", "serve", "m"], {"GLOO_SOCKET_IFNAME": "eth0"})
    }

    assert chosen["GLOO_SOCKET_IFNAME"].value == "eth0"
    assert chosen["GLOO_SOCKET_IFNAME"].kept
    assert chosen["VLLM_HOST_IP"].value == "127.0.0.1"
    assert not chosen["VLLM_HOST_IP"].kept


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["vllm", "serve", "m", "-tp", "2"], True),
        (["vllm", "serve", "m", "--nnodes", "2"], False),
        (["vllm", "serve", "m", "--nnodes=2"], False),
        (["vllm", "serve", "m", "--data_parallel_address", "10.0.0.1"], False),
        (["vllm", "serve", "m", "--distributed-executor-backend=ray"], False),
    ],
)
def test_an_engine_on_several_nodes_is_not_put_on_loopback(
    command: list[str], expected: bool
) -> None:
    names = {setting.name for setting in engine_settings(command, {})}

    assert on_one_node(command) is expected
    assert ("GLOO_SOCKET_IFNAME" in names) is expected


def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no-such-program"):
        launch(["no-such-program"], tmp_path / "log")


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotWritable, match="log"):
        launch(["true"], tmp_path / "missing" / "log")


def test_the_last_lines_of_a_log_are_returned(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(map(str, range(100))))

    assert last_lines(log, 3) == "97\n98\n99"


def test_the_foreground_shows_output_and_returns_the_exit_status(tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            *CRIA_RUN,
            tmp_path / "log",
            "--",
            sys.executable,
            "-c",
            "import sys; print('out'); sys.exit(7)",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 7
    assert ran.stdout == "out\n"
    assert "GLOO_SOCKET_IFNAME=lo" in ran.stderr


def test_the_exit_status_for_a_signal_is_that_of_a_shell(tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            *CRIA_RUN,
            tmp_path / "log",
            "--",
            sys.executable,
            "-c",
            "import os; os.kill(os.getpid(), 15)",
        ],
        capture_output=True,
        check=False,
    )

    assert ran.returncode == 128 + 15
