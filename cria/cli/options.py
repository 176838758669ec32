"""Make command-line options from the fields of a request: name, default and help of an option stand once."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import click
import msgspec
from msgspec.structs import FieldInfo

Function = TypeVar("Function", bound=Callable[..., Any])


class Spelling(msgspec.Struct, frozen=True, kw_only=True):
    """What an option does not take from its field: other names, a metavar, another default."""

    names: tuple[str, ...] = ()
    metavar: str | None = None
    default: object = msgspec.UNSET


def request_options(
    request: type[msgspec.Struct],
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    spellings: Mapping[str, Spelling] = MappingProxyType({}),
) -> Callable[[Function], Function]:
    """Give a command an option for each field of `request` that has a description.

    `only` and `without` name fields. The command gets the values under the names of the fields.

    A bool that is False by default becomes a flag, one that is True becomes --no-NAME; a Literal
    becomes a choice, a collection or a dict an option that can be repeated.
    """
    fields = [
        field
        for field in msgspec.structs.fields(request)
        if get_origin(field.type) is Annotated
        and field.name not in without
        and (only is None or field.name in only)
    ]

    def decorate(function: Function) -> Function:
        for field in reversed(fields):  # the decorator that is applied last is listed first
            function = _option(field, spellings.get(field.name, Spelling()))(function)
        return function

    return decorate


def _option(field: FieldInfo, spelling: Spelling) -> Callable[[Function], Function]:
    hint, *metas = get_args(field.type)
    help_text = next(meta.description for meta in metas if meta.description)
    name = field.name.replace("_", "-")
    if hint is bool and field.default is True:
        return click.option(
            *(spelling.names or (f"--no-{name}",)),
            field.name,
            is_flag=True,
            callback=_negate,
            help=f"Do not {help_text[0].lower()}{help_text[1:]}",
        )
    names = spelling.names or (f"--{name}",)
    if hint is bool:
        return click.option(*names, field.name, is_flag=True, help=help_text)
    if get_origin(hint) is Iterable or get_origin(_without_none(hint)) is dict:
        return click.option(
            *names,
            field.name,
            multiple=True,
            metavar=spelling.metavar,
            help=f"{help_text.removesuffix('.')}; repeatable.",
        )
    default = field.default if spelling.default is msgspec.UNSET else spelling.default
    if default is msgspec.NODEFAULT:
        default = None  # the command decides what it means that the option is missing
    return click.option(
        *names,
        field.name,
        type=_click_type(_without_none(hint), metas),
        default=default,
        show_default=default is not None,
        metavar=spelling.metavar,
        help=help_text,
    )


def _negate(_context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    return not value


def _click_type(hint: Any, metas: Iterable[msgspec.Meta]) -> click.ParamType[Any]:
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if set(get_args(hint)) - {NoneType} == {str, os.PathLike[str]}:
        return click.Path(path_type=Path)
    at_least = next((meta.ge for meta in metas if meta.ge is not None), None)
    above = next((meta.gt for meta in metas if meta.gt is not None), None)
    if hint is int:
        return click.INT if at_least is None else click.IntRange(min=int(at_least))
    if hint is float:
        return click.FLOAT if above is None else click.FloatRange(min=above, min_open=True)
    raise TypeError(f"no option is made from a field of type {hint}")


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if len(kinds) == 1 and NoneType in get_args(hint) else hint


def port_options(function: Function) -> Function:
    """Give a command the options that say which port and which address becomes which."""
    move = click.option(
        "-p",
        "moves",
        multiple=True,
        metavar="OLD=NEW",
        help="Move the port OLD to NEW; repeatable.",
    )
    others = click.option(
        "--ports",
        metavar="keep|auto|fresh|offset:N",
        help="Keep all other ports, move those that are taken, move all, or add N to each.",
    )
    address = click.option(
        "--address",
        "addresses",
        multiple=True,
        metavar="OLD=NEW",
        help="Move the address OLD to NEW; repeatable.",
    )
    return move(others(address(function)))
