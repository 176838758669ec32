"""Options are made from the fields of a request, and the names that scripts rely on stay."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import msgspec
import pytest
from click.testing import CliRunner

from cria.cli.dump import command as dump
from cria.cli.options import Spelling, request_options
from cria.cli.restore import command as restore
from cria.requests import DumpRequest, ReplicasRequest

DESCRIBED = msgspec.Meta(description="Do a thing.")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One field of each type that an option is made from, and one that is no option."""

    count: Annotated[int | None, DESCRIBED] = None
    copies: Annotated[int, DESCRIBED, msgspec.Meta(ge=1)]
    seconds: Annotated[float, DESCRIBED, msgspec.Meta(gt=0)] = 30.0
    keep_it: Annotated[bool, DESCRIBED] = False
    check_it: Annotated[bool, DESCRIBED] = True
    mode: Annotated[Literal["fast", "slow"] | None, DESCRIBED] = "fast"
    place: Annotated[str | os.PathLike[str] | None, DESCRIBED] = None
    names: Annotated[Iterable[str], DESCRIBED] = ()
    pairs: Annotated[dict[str, str] | None, DESCRIBED] = None
    listener: object = None


def run(*arguments: str, **selection: Any) -> dict[str, Any]:
    """Return what a command with these options gets for `arguments`."""
    received: dict[str, Any] = {}

    @click.command
    @request_options(Request, **selection)
    def command(**values: Any) -> None:
        received.update(values)

    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return received


def test_without_options_the_command_gets_the_defaults_of_the_fields() -> None:
    assert run() == {
        "count": None,
        "copies": None,
        "seconds": 30.0,
        "keep_it": False,
        "check_it": True,
        "mode": "fast",
        "place": None,
        "names": (),
        "pairs": (),
    }


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--count", "3"], "count", 3),
        (["--copies", "2"], "copies", 2),
        (["--seconds", "1.5"], "seconds", 1.5),
        (["--keep-it"], "keep_it", True),
        (["--no-check-it"], "check_it", False),
        (["--mode", "slow"], "mode", "slow"),
        (["--place", "/tmp"], "place", Path("/tmp")),
        (["--names", "a", "--names", "b"], "names", ("a", "b")),
        (["--pairs", "a=b", "--pairs", "c=d"], "pairs", ("a=b", "c=d")),
    ],
)
def test_an_option_sets_its_field(arguments: list[str], field: str, value: object) -> None:
    assert run(*arguments)[field] == value


@pytest.mark.parametrize(
    "arguments", [["--copies", "0"], ["--seconds", "0"], ["--mode", "x"], ["--count", "x"]]
)
def test_a_value_outside_of_the_field_s_range_is_refused(arguments: list[str]) -> None:
    with pytest.raises(click.BadParameter):
        run(*arguments)


def test_only_and_without_select_fields() -> None:
    assert set(run(only=("count", "mode"))) == {"count", "mode"}
    assert "count" not in run(without=("count",))


def test_a_spelling_replaces_names_and_default() -> None:
    spellings = {"names": Spelling(names=("--name",)), "mode": Spelling(default=None)}

    values = run("--name", "a", spellings=spellings)

    assert (values["names"], values["mode"]) == (("a",), None)


def test_the_help_of_a_negated_flag_is_negative() -> None:
    command = click.command(request_options(Request, only=("check_it",))(lambda **_: None))

    assert "--no-check-it  Do not do a thing." in CliRunner().invoke(command, ["--help"]).output


DUMP_OPTIONS = {
    *("--output", "-o", "--port", "--leave-running", "--skip-in-flight", "--compress"),
    *("--direct-io", "--any-process", "--no-canary", "--no-quiesce", "--inflight"),
    *("--quiesce-seconds", "--weights", "--gpu-seconds", "--dry-run", "--explain", "--hook"),
    *("--hook-seconds", "--json", "--progress"),
}
RESTORE_OPTIONS = {
    *("-p", "--ports", "--address", "--outside", "--clients", "--wait", "--isolate", "--gpu"),
    *("--gpu-seconds", "--share-memory", "--share-in", "--lazy", "--replicas", "--all-or-none"),
    *("--no-canary", "--dry-run", "--explain", "--hook", "--hook-seconds", "--json", "--progress"),
}


@pytest.mark.parametrize(
    ("command", "names"),
    [(dump, DUMP_OPTIONS), (restore, RESTORE_OPTIONS)],
    ids=["dump", "restore"],
)
def test_every_option_that_scripts_may_use_is_there(
    command: click.Command, names: set[str]
) -> None:
    options = [option for option in command.params if isinstance(option, click.Option)]

    assert names <= {name for option in options for name in option.opts}


@pytest.mark.parametrize("request_type", [DumpRequest, ReplicasRequest])
def test_an_option_s_default_is_the_one_of_its_field(request_type: type[msgspec.Struct]) -> None:
    command = {DumpRequest: dump, ReplicasRequest: restore}[request_type]
    defaults = command.make_context("", [], resilient_parsing=True).params
    for field in msgspec.structs.fields(request_type):
        if field.name in {"output", "ports", "gpus", "listener"} or field.required:
            continue
        assert defaults[field.name] == field.default, field.name
