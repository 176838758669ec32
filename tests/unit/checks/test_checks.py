"""The checks of an engine, on inventories made by hand and a /proc made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cria.model.inventory import Descriptor, Holder
from cria.operations.checks import descriptors, processes, sockets
from cria.operations.checks.criu import needed_for
from cria.operations.checks.rows import Row
from cria.system.host import model_and_features

from .builders import HTTP, device, inventory, process, tcp


def one(rows: object) -> Row:
    (row,) = rows  # type: ignore[misc]
    assert isinstance(row, Row)
    return row


class TestConnections:
    def test_a_client_of_the_http_api_is_told_and_does_not_block(self) -> None:
        held = (tcp("0.0.0.0:8000", role=HTTP), tcp("10.0.0.1:8000", "10.0.0.2:40000"))
        row = one(sockets.connections(inventory(sockets=held)))
        assert row.level == "warn" and "10.0.0.2:40000" in row.value

    def test_a_connection_to_elsewhere_blocks(self) -> None:
        row = one(sockets.connections(inventory(sockets=(tcp("10.0.0.1:4", "10.9.9.9:443"),))))
        assert row.level == "fail" and "10.0.0.1:4 -> 10.9.9.9:443" in row.value
        assert (row.pid, row.fd) == (10, 7)

    @pytest.mark.parametrize("state", ["CLOSE_WAIT", "FIN_WAIT2", "LAST_ACK"])
    def test_one_that_the_other_end_has_left_does_not_block(self, state: str) -> None:
        held = (tcp("10.0.0.1:4", "10.9.9.9:443", state=state),)
        assert one(sockets.connections(inventory(sockets=held))).level == "warn"

    def test_both_ends_inside_are_no_finding(self) -> None:
        held = (tcp("127.0.0.1:4", "127.0.0.1:5", peer_holders=(Holder(pid=10, fd=8),)),)
        assert list(sockets.connections(inventory(sockets=held))) == []


class TestDevices:
    def test_rdma_is_turned_off_by_its_variable(self) -> None:
        held = (device("/dev/infiniband/uverbs0", 231, 192),)
        row = one(descriptors.devices(inventory(descriptors=held)))
        assert "NCCL_IB_DISABLE=1" in (row.remedy or "")

    @pytest.mark.parametrize("target", ["/dev/null", "/dev/zero", "/dev/urandom"])
    def test_memory_devices_are_no_finding(self, target: str) -> None:
        assert list(descriptors.devices(inventory(descriptors=(device(target, 1, 3),)))) == []


class TestAnonymousFiles:
    @pytest.mark.parametrize("name", ["[fanotify]", "bpf-map"])
    def test_those_that_criu_dumps_are_no_finding(self, name: str) -> None:
        held = Descriptor(pid=10, fd=3, kind="other", target=f"anon_inode:{name}")
        assert list(descriptors.unsupported(inventory(descriptors=(held,)))) == []

    def test_others_are_named_as_the_kernel_names_them(self) -> None:
        held = Descriptor(pid=10, fd=3, kind="other", target="anon_inode:kvm-vm")
        row = one(descriptors.unsupported(inventory(descriptors=(held,))))
        assert "kvm-vm" in row.subject and "fd 3" in row.value

    def test_io_uring_is_avoided_by_cria_run(self) -> None:
        held = Descriptor(pid=10, fd=3, kind="io_uring", target="anon_inode:[io_uring]")
        row = one(descriptors.unsupported(inventory(descriptors=(held,))))
        assert "io_uring" in row.subject and "cria run" in (row.remedy or "")


class TestProcesses:
    def test_a_tracer_is_named(self, tmp_path: Path) -> None:
        for pid, text in ((10, "TracerPid:\t77\n"), (77, "")):
            (tmp_path / str(pid)).mkdir()
            (tmp_path / str(pid) / "status").write_text(f"Name:\tx\n{text}")
        (tmp_path / "77" / "comm").write_text("py-spy\n")
        row = one(processes.traced(inventory(), tmp_path))
        assert "PID 77 (py-spy)" in row.value

    def test_namespaces_of_a_child_are_named(self) -> None:
        child = process(11, namespaces={"mnt": 1, "net": 99})
        row = one(processes.namespaces(inventory(process(), child)))
        assert row.pid == 11 and row.value.startswith("net;")

    def test_a_process_without_its_first_thread(self) -> None:
        row = one(processes.dead_leaders(inventory(process(threads=3, state="Z"))))
        assert "2 threads" in row.value

    def test_a_plain_zombie_is_no_finding(self) -> None:
        assert list(processes.dead_leaders(inventory(process(threads=1, state="Z")))) == []


@pytest.mark.parametrize(
    ("kernel", "criu"),
    [((6, 12), (4, 1)), ((6, 13), (4, 1)), ((6, 16), (4, 2)), ((7, 0), (4, 2, 1))],
)
def test_newer_kernels_need_newer_criu(kernel: tuple[int, int], criu: tuple[int, ...]) -> None:
    assert needed_for(kernel)[0] == criu


def test_the_features_of_a_cpu_are_those_of_the_first(tmp_path: Path) -> None:
    block = "processor\t: {}\nmodel name\t: A CPU\nflags\t\t: {}\n\n"
    (tmp_path / "cpuinfo").write_text(block.format(0, "sse avx512f") + block.format(1, "none"))
    assert model_and_features(tmp_path) == ("A CPU", ("avx512f", "sse"))
