"""The Python API takes the fields of the requests as its arguments, and the command line its options from them."""

from __future__ import annotations

from inspect import signature

import msgspec
import pytest

import cria
from cria.api import RestoreOptions
from cria.requests import DumpRequest, ReplicasRequest, RestoreRequest


@pytest.mark.parametrize(
    ("function", "request_type"),
    [
        (cria.dump, DumpRequest),
        (cria.restore, RestoreRequest),
        (cria.restore_replicas, ReplicasRequest),
    ],
)
def test_a_function_takes_the_fields_of_its_request(
    function: object, request_type: type[msgspec.Struct]
) -> None:
    assert list(signature(function).parameters) == list(signature(request_type).parameters)  # type: ignore[arg-type]


def test_an_unknown_option_is_refused_before_anything_is_done() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        cria.restore("nowhere", no_such_option=True)  # type: ignore[call-arg]


def test_the_method_of_a_checkpoint_has_the_options_of_the_requests() -> None:
    own = {"checkpoint", "ports", "replicas", "all_or_none"}

    fields = {field.name for field in msgspec.structs.fields(ReplicasRequest)} - own

    assert RestoreOptions.__optional_keys__ == fields


@pytest.mark.parametrize("name", cria.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(cria, name) is not None


def test_names_of_cria_0_1_are_still_there() -> None:
    from cria import hooks, ports

    for name in (
        "plan",
        "plan_clones",
        "reserve",
        "rewrite",
        "private_view",
        "sockets_of",
        "Wishes",
    ):
        assert hasattr(ports, name), name
    for name in ("restore", "plan_ports", "verify", "pack", "open", "share_memory"):
        assert hasattr(cria.Checkpoint, name), name
    assert hooks.Facts is hooks.HookCall
