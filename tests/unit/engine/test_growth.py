"""The work of classify() grows in proportion to the number of sockets."""

import sys
from types import FrameType

from cria.engine.inventory.collect import Snapshot, classify
from cria.model.inventory import Descriptor, Holder, Process, Socket
from cria.model.socket import Endpoint


def engine(count: int) -> Snapshot:
    """A worker with `count` Gloo listeners and pairs of each with the next."""
    worker = Process(
        pid=2, parent=1, session=1, uid=0, started=0, command=("VLLM::Worker_TP0",),
        name="VLLM::Worker_TP", threads=1, namespaces={"net": 1},
    )  # fmt: skip
    sockets, descriptors = [], []
    for index in range(count):
        fd, port = index * 5, 1024 + index
        local = Endpoint(address="127.0.0.1", port=port)
        listener = Socket(
            netns=1, family="ipv4", protocol="tcp", state="LISTEN", local=local, inode=fd,
            uid=0, backlog=4096, holders=(Holder(pid=2, fd=fd),),
        )  # fmt: skip
        sockets.append(listener)
        descriptors += [
            Descriptor(pid=2, fd=fd, kind="socket", target="", inode=fd),
            Descriptor(pid=2, fd=fd + 1, kind="pipe", target=""),
            Descriptor(pid=2, fd=fd + 2, kind="eventpoll", target="", watches=(fd, fd + 1)),
        ]
    return Snapshot(
        taken=0, is_engine=True, processes=(worker,), descriptors=tuple(descriptors),
        sockets=tuple(sockets), unix_sockets=(), shared_files=(),
        threads={2: ("gloo_tcp_loop",) * count}, libraries={},
    )  # fmt: skip


def calls(snapshot: Snapshot) -> int:
    """Count the calls that classify() makes: unlike seconds, they are the same in each run."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        inventory = classify(snapshot)
    finally:
        sys.setprofile(None)
    assert {s.role.name for s in inventory.sockets} == {"Gloo listener"}
    assert len(inventory.groups) == len(snapshot.sockets)
    return count


def test_ten_times_the_sockets_are_about_ten_times_the_work() -> None:
    ten, hundred, thousand = calls(engine(10)), calls(engine(100)), calls(engine(1000))
    assert 8 < (thousand - hundred) / (hundred - ten) < 12
