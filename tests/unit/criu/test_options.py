"""The options that cria chooses for CRIU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from cria.criu.client import Client
from cria.criu.options import LOG_LEVEL_VARIABLE, dump_options, restore_options
from cria.errors import UsageError
from cria.model.inventory import Holder, Inventory, Process, Socket
from cria.model.manifest import DumpOptions
from cria.model.socket import Endpoint

DUMPED = DumpOptions(leave_running=False, network_lock="SKIP", image_io_mode=None, shell_job=False)


ROOT = Process(
    pid=10,
    parent=1,
    session=10,
    uid=0,
    started=0.0,
    command=("vllm",),
    name="vllm",
    threads=1,
    namespaces={},
    state="S",
)


class FakeClient:
    """A CRIU with some options, whose constants are their names."""

    def __init__(self, *options: str) -> None:
        self._options = options

    def options(self, **fields: object) -> SimpleNamespace:
        return SimpleNamespace(**fields)

    def has_option(self, name: str) -> bool:
        return name in self._options

    def constant(self, name: str) -> str:
        return name


def client(*options: str) -> Client:
    return cast("Client", FakeClient(*options))


def level() -> int:
    return restore_options(client(), DUMPED).log_level


def connection(*peer_holders: Holder) -> Socket:
    return Socket(
        netns=2,
        family="ipv4",
        protocol="tcp",
        state="ESTABLISHED",
        inode=1,
        uid=0,
        local=Endpoint(address="127.0.0.1", port=8000),
        peer=Endpoint(address="127.0.0.1", port=40000),
        holders=(Holder(pid=10, fd=7),),
        peer_holders=peer_holders,
    )


def chosen(
    socket: Socket, *options: str, leave_running: bool = False, direct_io: bool = False
) -> DumpOptions:
    inventory = Inventory(taken=0.0, is_engine=True, processes=(ROOT,), sockets=(socket,))
    dumped, message = dump_options(
        client(*options), inventory, leave_running=leave_running, direct_io=direct_io
    )
    assert message.network_lock == dumped.network_lock
    return dumped


def test_criu_logs_errors_and_warnings_and_more_where_the_user_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(LOG_LEVEL_VARIABLE, raising=False)
    assert level() == 2

    monkeypatch.setenv(LOG_LEVEL_VARIABLE, "4")
    assert level() == 4


@pytest.mark.parametrize("asked", ["0", "5", "all", "-1"])
def test_a_level_that_does_not_exist_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv(LOG_LEVEL_VARIABLE, asked)

    with pytest.raises(UsageError) as caught:
        level()
    assert asked in caught.value.message


def test_connections_are_locked_only_where_one_end_is_outside_and_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside, outside = connection(Holder(pid=10, fd=8)), connection()
    monkeypatch.setattr("shutil.which", lambda _program: None)

    assert chosen(inside, leave_running=True).network_lock == "SKIP"
    assert chosen(outside).network_lock == "SKIP"
    assert chosen(outside, leave_running=True).network_lock == "NFTABLES"

    monkeypatch.setattr("shutil.which", lambda program: f"/usr/sbin/{program}")
    assert chosen(outside, leave_running=True).network_lock == "IPTABLES"


def test_images_are_written_directly_only_where_the_user_asks_and_criu_can() -> None:
    socket = connection()

    assert chosen(socket, "image_io_mode").image_io_mode is None
    assert chosen(socket, direct_io=True).image_io_mode is None
    assert chosen(socket, "image_io_mode", direct_io=True).image_io_mode == "direct"
