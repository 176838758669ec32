"""A port that an archive's metadata still names is reported by its place, not by its value."""

from __future__ import annotations

import json

import pytest

from cria.kubernetes.archive.contents import MAX_MENTIONS, find_mentions


def places(document: object, *ports: int, addresses: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    text = json.dumps(document).encode()
    return [
        (mention.where, mention.says) for mention in find_mentions({"f": text}, ports, addresses)
    ]


@pytest.mark.parametrize("text", ["8000", "--port=8000", "http://a:8000/v1", "0.0.0.0:8000"])
def test_a_port_is_a_number_of_its_own(text: str) -> None:
    assert places({"args": [text]}, 8000) == [("args[0]", "8000")]


@pytest.mark.parametrize("text", ["18000", "80001", "1.8000", "v8000", "8000.5", ""])
def test_a_number_within_something_else_is_no_port(text: str) -> None:
    assert places({"args": [text]}, 8000) == []


def test_a_json_number_is_a_port_where_its_key_speaks_of_ports() -> None:
    document = {"hostPort": 8000, "memory": 8000, "ports": [8000], "port": True}

    assert places(document, 8000, 1) == [("hostPort", "8000"), ("ports[0]", "8000")]


def test_a_variable_is_named_without_its_value() -> None:
    document = {"process": {"env": ["TOKEN=secret:8000", "PATH=/bin"]}}

    assert places(document, 8000) == [("process.env TOKEN", "8000")]


def test_addresses_are_found_too() -> None:
    document = {"annotations": {"ip": "10.0.0.5/24"}}

    assert places(document, addresses=("10.0.0.5",)) == [("annotations.ip", "10.0.0.5")]
    assert places({"ip": "110.0.0.5"}, addresses=("10.0.0.5",)) == []


def test_a_long_list_ends_and_a_deep_document_is_read() -> None:
    deep: object = "8000"
    for _ in range(400):
        deep = [deep]

    assert len(places(["8000"] * 200, 8000)) == MAX_MENTIONS
    assert len(places(deep, 8000)) == 1
    assert find_mentions({"f": b"no json"}, [8000]) == ()
    assert places({"a": "8000"}) == []
