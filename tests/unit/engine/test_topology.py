"""Process groups and topology are read from what the kernel shows of real engines."""

from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from cria.engine.inventory.collect import Snapshot, classify
from cria.engine.inventory.topology import served_model
from cria.model.inventory import Topology

Recorded = Callable[[str], Snapshot]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("tp1", {1: 13}), ("tp2", {2: 5, 1: 16}), ("dp2", {1: 26}), ("api2", {1: 13})],
)
def test_groups_have_the_ranks_that_their_pairs_connect(
    snapshot: Recorded, name: str, sizes: dict[int, int]
) -> None:
    groups = classify(snapshot(name)).groups
    assert Counter(len(group.members) for group in groups) == sizes


def test_every_gloo_listener_belongs_to_one_group_and_a_group_has_no_rank_twice(
    snapshot: Recorded,
) -> None:
    inventory = classify(snapshot("tp2"))
    members = [member for group in inventory.groups for member in group.members]
    gloo = [s.local for s in inventory.listeners() if s.role.name == "Gloo listener"]
    assert sorted(member.listener for member in members) == sorted(gloo)
    for group in inventory.groups:
        assert len({member.pid for member in group.members}) == len(group.members)


def test_without_pairs_every_listener_is_a_group_of_its_own(snapshot: Recorded) -> None:
    recording = snapshot("tp2")
    listeners = tuple(s for s in recording.sockets if s.peer is None)
    inventory = classify(msgspec.structs.replace(recording, sockets=listeners))
    assert Counter(len(group.members) for group in inventory.groups) == {1: 26}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("tp1", Topology(api_servers=1, engine_cores=1, workers=1)),
        ("tp2", Topology(tensor=2, api_servers=1, engine_cores=1, workers=2)),
        ("dp2", Topology(data=2, api_servers=2, engine_cores=2, workers=2)),
        ("api2", Topology(api_servers=2, engine_cores=1, workers=1)),
    ],
)
def test_the_layout_is_read_from_titles(snapshot: Recorded, name: str, layout: Topology) -> None:
    topology = classify(snapshot(name)).topology
    assert msgspec.structs.replace(topology, model=None, url=None) == layout
    assert topology.model == "/models/tiny"
    assert topology.url is not None and topology.url.startswith("http://127.0.0.1:8")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("vllm serve Qwen/Qwen3-0.6B --port 1", "Qwen/Qwen3-0.6B"),
        ("vllm serve --port 1 --model m", "m"),
        ("vllm serve m --served-model-name small", "small"),
        ("vllm serve --port 1", None),
        ("python -m vllm.entrypoints.openai.api_server --model=m", "m"),
    ],
)
def test_the_model_is_read_from_the_command(line: str, name: str | None) -> None:
    assert served_model(tuple(line.split())) == name
