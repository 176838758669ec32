"""An engine is found from any of its processes, and no other program is taken for an engine."""

import os
import socket
from pathlib import Path

import pytest

from cria.engine.command_line import starts_engine
from cria.engine.inventory.discovery import (
    describe,
    find_engine,
    find_engines,
    find_root,
    is_engine_root,
    started_by_cria,
)
from cria.errors import AmbiguousTarget, NoSuchProcess, NotAnEngine

PYTHON = "/usr/bin/python3.11"
SERVER = (PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", "m")


@pytest.mark.parametrize(
    "line",
    [
        "python -m vllm.entrypoints.openai.api_server --model m",
        "/venv/bin/python3.12 -u -X dev -m vllm.entrypoints.openai.api_server",
        "python -m vllm serve m",
        "python -m vllm.entrypoints.cli.main serve m",
        "/venv/bin/vllm serve m",
        "/venv/bin/python /venv/bin/vllm serve m",
        "/nix/store/x/bin/python3.12 /nix/store/y/bin/.vllm-wrapped serve m",
    ],
)
def test_a_command_that_starts_an_engine_is_recognized(line: str) -> None:
    assert starts_engine(tuple(line.split()))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nginx",
        "python",
        "python -m",
        "python serve.py vllm serve",
        "python -m http.server",
        "python -m vllm bench serve",
        "python -m vllm.collect_env",
        "vllm bench serve",
        "bash -c vllm serve m",
        "/venv/bin/python /venv/bin/cria run -- python -m vllm.entrypoints.openai.api_server",
        "cria run -- vllm serve m",
        "python -m cria run -- vllm serve m",
        "python -c import_vllm -m vllm.entrypoints.openai.api_server",
    ],
)
def test_any_other_command_is_not_recognized(line: str) -> None:
    assert not starts_engine(tuple(line.split()))


class Host:
    """A /proc with the processes that a test adds."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc

    def add(
        self, pid: int, parent: int, *argv: str, name: str | None = None, program: str = PYTHON
    ) -> None:
        process = self.proc / str(pid)
        (process / "fd").mkdir(parents=True)
        name = name or Path(argv[0]).name[:15]
        fields = ["S", str(parent), "1", "1", *["0"] * 13, "1", "0", "1"]
        (process / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
        (process / "cmdline").write_bytes(b"\0".join(map(str.encode, argv)) + b"\0")
        (process / "exe").symlink_to(program)

    def engine(self, pid: int, parent: int = 1) -> None:
        self.add(pid, parent, *SERVER)
        self.add(pid + 1, pid, "VLLM::EngineCore")
        self.add(pid + 2, pid + 1, "VLLM::Worker_TP0")
        self.add(pid + 3, pid, PYTHON, "-c", "from multiprocessing.resource_tracker import main")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.add(1, 0, "/sbin/init", program="/sbin/init")
    host.add(20, 1, "nginx", program="/usr/sbin/nginx")
    return host


@pytest.mark.parametrize("pid", [100, 101, 102, 103])
def test_the_root_is_found_from_every_process_of_the_engine(host: Host, pid: int) -> None:
    host.engine(100)
    assert find_root(pid, host.proc) == 100
    assert is_engine_root(pid, host.proc) == (pid == 100)


def test_the_program_that_started_an_engine_is_no_part_of_it(host: Host) -> None:
    host.add(90, 1, "cria", "run", "--", *SERVER)
    host.engine(100, parent=90)
    assert find_engines(host.proc) == (100,)
    with pytest.raises(NotAnEngine):
        find_root(90, host.proc)


def test_a_program_that_uses_vllm_as_a_library_is_an_engine(host: Host) -> None:
    host.add(100, 1, PYTHON, "offline.py")
    host.add(101, 100, "VLLM::EngineCore")
    assert find_engines(host.proc) == (100,)


def test_an_engine_whose_root_has_ended_is_found_and_init_is_no_part_of_it(host: Host) -> None:
    host.add(101, 1, "VLLM::EngineCore")
    host.add(102, 101, "VLLM::Worker_TP0")
    assert find_engines(host.proc) == (101,)
    assert find_root(102, host.proc) == 101


def test_with_several_engines_the_error_lists_them(host: Host) -> None:
    host.engine(100)
    host.engine(200)
    assert find_engines(host.proc) == (100, 200)
    with pytest.raises(AmbiguousTarget) as raised:
        find_engine(None, None, host.proc)
    assert "100 is python3.11 -m vllm.entrypoints.openai.api_server" in str(raised.value.details)
    assert "200 is" in str(raised.value.details)


def test_the_only_engine_needs_no_name(host: Host) -> None:
    host.engine(100)
    assert find_engine(None, None, host.proc) == 100


def test_without_an_engine_the_remedy_is_to_start_one(host: Host) -> None:
    with pytest.raises(AmbiguousTarget) as raised:
        find_engine(None, None, host.proc)
    assert str(raised.value.remedy).startswith("cria run")


def test_another_program_is_named_with_its_owner(host: Host) -> None:
    with pytest.raises(NotAnEngine, match="process 20 does not belong") as raised:
        find_engine(20, None, host.proc)
    assert str(raised.value.details).startswith("20 is nginx, owned by ")


def test_a_pid_that_does_not_exist_is_an_error(host: Host) -> None:
    with pytest.raises(NoSuchProcess):
        find_engine(4711, None, host.proc)


def test_a_description_holds_no_option_of_the_command(host: Host) -> None:
    host.add(30, 1, PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--api-key", "hush")
    assert "hush" not in describe(30, host.proc)


def test_for_a_port_of_another_program_the_error_names_the_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(NotAnEngine) as raised:
        find_engine(None, listener.getsockname()[1])
    assert str(raised.value.details).startswith(f"{os.getpid()} is ")


def test_a_port_where_nobody_listens_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(AmbiguousTarget, match=f"no engine listens on port {port}"):
        find_engine(None, port)


def test_an_engine_that_cria_started_is_marked_in_its_environment(host: Host) -> None:
    host.engine(100)
    host.engine(200)
    (host.proc / "200" / "environ").write_bytes(b"A=1\0CRIA_ENGINE=1\0")
    assert [started_by_cria(root, host.proc) for root in find_engines(host.proc)] == [False, True]
