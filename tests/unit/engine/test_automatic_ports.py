"""`--port auto` becomes a port that stays free for the engine, whatever starts meanwhile."""

import socket
from contextlib import ExitStack

import pytest

from cria.engine.launch.launcher import assign_ports


def test_every_automatic_port_of_a_command_gets_a_number_of_its_own() -> None:
    command = ["vllm", "serve", "auto", "--port", "auto", "--master_port=auto", "--dtype", "auto"]

    with assign_ports(command) as arguments:
        assert arguments[:4] == ["vllm", "serve", "auto", "--port"]
        first, second = int(arguments[4]), int(arguments[5].removeprefix("--master_port="))
        assert first != second
        assert arguments[6:] == ["--dtype", "auto"]


def test_a_command_that_names_its_ports_is_left_alone() -> None:
    with assign_ports(["vllm", "serve", "m", "--port", "8000"]) as arguments:
        assert arguments == ["vllm", "serve", "m", "--port", "8000"]


def test_engines_that_start_at_the_same_moment_get_different_ports() -> None:
    with ExitStack() as stack:
        chosen = [stack.enter_context(assign_ports(["e", "--port", "auto"]))[2] for _ in range(64)]

    assert len(set(chosen)) == 64


def test_a_held_port_goes_to_no_other_program_and_the_engine_binds_it() -> None:
    with assign_ports(["e", "--port", "auto"]) as arguments:
        port = int(arguments[2])
        with ExitStack() as stack:
            for _ in range(200):
                other = stack.enter_context(socket.socket())
                other.bind(("127.0.0.1", 0))
                assert other.getsockname()[1] != port
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)) as engine:
            assert engine.getsockname()[1] == port
