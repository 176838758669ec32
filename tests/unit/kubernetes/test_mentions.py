"""What in a runtime's words goes on naming a port is told by its place, not by its value."""

from __future__ import annotations

import json

import pytest

from cria.kubernetes.archive.contents import MAX_MENTIONS, find_mentions


def found(document: object, *ports: int, addresses: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    text = json.dumps(document).encode()
    return [(each.where, each.says) for each in find_mentions({"f": text}, ports, addresses)]


@pytest.mark.parametrize("text", ["8000", "--port=8000", "http://a:8000/v1", "0.0.0.0:8000"])
def test_a_port_is_found_as_a_number_of_its_own(text: str) -> None:
    assert found({"args": [text]}, 8000) == [("args[0]", "8000")]


@pytest.mark.parametrize("text", ["18000", "80001", "1.8000", "v8000", "8000.5", ""])
def test_a_part_of_something_else_is_no_port(text: str) -> None:
    assert found({"args": [text]}, 8000) == []


def test_numbers_count_where_the_key_speaks_of_ports() -> None:
    document = {"hostPort": 8000, "memory": 8000, "ports": [8000], "port": True}

    assert found(document, 8000, 1) == [("hostPort", "8000"), ("ports[0]", "8000")]


def test_a_variable_is_named_and_its_value_is_not() -> None:
    document = {"process": {"env": ["TOKEN=secret:8000", "PATH=/bin"]}}

    assert found(document, 8000) == [("process.env TOKEN", "8000")]


def test_addresses_are_found_too() -> None:
    document = {"annotations": {"ip": "10.0.0.5/24"}}

    assert found(document, addresses=("10.0.0.5",)) == [("annotations.ip", "10.0.0.5")]
    assert found({"ip": "110.0.0.5"}, addresses=("10.0.0.5",)) == []


def test_a_long_list_ends_and_a_deep_document_is_read() -> None:
    deep: object = "8000"
    for _ in range(400):
        deep = [deep]

    assert len(found(["8000"] * 200, 8000)) == MAX_MENTIONS
    assert len(found(deep, 8000)) == 1
    assert find_mentions({"f": b"no json"}, [8000]) == ()
    assert found({"a": "8000"}) == []
