"""The rules of the house that a program can check: which way imports point, and who may import what."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "cria").rglob("*.py"))

FLOORS = (
    {"cli", "__main__"},
    {"demo", "bench"},
    {"fleet"},
    {"dump", "restore", "packing", "kubernetes"},
    {"doctor"},
    {"checkpoint"},
    {
        "ports",
        "engine",
        "cuda",
        "criu",
        "images",
        "lazy",
        "pages",
        "process",
        "sharing",
        "storage",
        "namespaces",
        "hooks",
    },
    {"manifest"},
    {"operation", "inventory"},
    {"errors", "events", "timings"},
)
OWNERS = {
    "click": {"cli"},
    "rich": {"cli"},
    "pycriu": {"images", "criu"},
    "cuda": {"cuda"},
    "torch": {"engine.inside"},
    "vllm": {"engine.inside"},
    "transformers": {"engine.inside"},
}


@cache
def imported(path: Path) -> tuple[tuple[str, bool], ...]:
    """Every module a file imports, and whether only for type checking."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[tuple[str, bool]]:
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in typing_only


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    here = room(module_name(path))
    if here in (
        "",
        "checkpoint",
    ):  # the public face, and the handle whose methods are the operations
        return
    for name, typing_only in imported(path):
        there = room(name) if name.startswith("cria.") else ""
        if there and not typing_only:
            assert floor(there) >= floor(here), f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_each_outside_tool_has_one_home(path: Path) -> None:
    here = module_name(path).removeprefix("cria.")
    for name, _ in imported(path):
        homes = OWNERS.get(name.split(".")[0])
        assert homes is None or any(here.startswith(home) for home in homes), f"{path}: {name}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_says_what_it_is_for_and_stays_readable(path: Path) -> None:
    text = path.read_text()

    assert ast.get_docstring(ast.parse(text)) or not text.strip(), path
    assert len(text.splitlines()) <= 400, path
