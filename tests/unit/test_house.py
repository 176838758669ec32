"""The rules of the house that a program can check: the order of the rooms, circles, and who imports what."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for path in (ROOT / "cria").rglob("*.py") if path.parent.name != "cria_agent")

# From the top down: a room imports only from rooms below it. ARCHITECTURE.md draws the same picture.
ROOMS = (
    "__main__",
    "cli",
    "demo",
    "api",
    "kubernetes",
    "operations",
    "hooks",
    "requests",
    "ports",
    "checkpoint",
    "engine",
    "isolation",
    "memory",
    "gpu",
    "network",
    "criu",
    "system",
    "model",
    "redaction",
    "operation",
    "events",
    "errors",
)
OWNERS = {
    "click": {"cli"},
    "rich": {"cli"},
    "pycriu": {"criu"},
    "cuda": {"gpu"},
    "torch": {"demo.tiny_model"},
    "vllm": set(),
    "transformers": {"demo.tiny_model"},
}


@cache
def imported(path: Path) -> tuple[tuple[str, bool], ...]:
    """Every module that a file imports, and whether only for type checking."""
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
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield (full if full in NAMES else node.module), id(node) in typing_only


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in MODULES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    here = room(module_name(path))
    if not here:  # cria/__init__.py hands on names of every room
        return
    for name, _ in imported(path):
        there = room(name) if name.startswith("cria.") else ""
        if there:
            assert ROOMS.index(there) >= ROOMS.index(here), f"{path} imports {name}"


def test_no_circle_of_modules() -> None:
    below = {
        module: {name for name, _ in imported(path) if name in NAMES and name != module}
        for module, path in NAMES.items()
        if module != "cria"
    }
    while leaves := [module for module, names in below.items() if not names & below.keys()]:
        for module in leaves:
            del below[module]

    assert not below, f"a circle runs through {sorted(below)}"


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
    assert len(text.splitlines()) <= 420, path
