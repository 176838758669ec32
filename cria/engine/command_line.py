"""The command of an engine: whether it starts one, its options, and what `cria run` adds to it."""

from __future__ import annotations

from pathlib import PurePosixPath

import msgspec

ENGINE_MARK = (
    "CRIA_ENGINE"  # in the environment of every engine that cria started: how cria ps knows it
)
TITLE_PREFIX = "VLLM::"
_SERVING_MODULES = ("vllm.entrypoints.", "vllm.snapshot.")
_CLI_MODULES = ("vllm", "vllm.entrypoints.cli.main")
# nixpkgs wraps programs and calls the real one .NAME-wrapped.
_PROGRAMS = ("vllm", ".vllm-wrapped")
_OPTIONS_WITH_VALUE = ("-X", "-W", "--check-hash-based-pycs")


def starts_engine(argv: tuple[str, ...]) -> bool:
    """Say whether these arguments start a vLLM engine: `python -m vllm...` or `vllm serve ...`."""
    program = PurePosixPath(argv[0]).name if argv else ""
    if program in _PROGRAMS:
        return argv[1:2] == ("serve",)
    if not program.startswith("python"):
        return False
    start, module = locate_script(argv)
    if module in _CLI_MODULES:
        return argv[start : start + 1] == ("serve",)
    if module is not None:
        return module.startswith(_SERVING_MODULES)
    script = PurePosixPath(argv[start]).name if start < len(argv) else ""
    return script in _PROGRAMS and argv[start + 1 : start + 2] == ("serve",)


def locate_script(argv: tuple[str, ...]) -> tuple[int, str | None]:
    """Return where a Python program's own arguments (or its script) begin, and the -m module."""
    place = 1
    while place < len(argv) and argv[place].startswith("-"):
        option = argv[place]
        if option == "-m":
            return place + 2, argv[place + 1] if place + 1 < len(argv) else None
        if option == "-c":
            return len(argv), None
        place += 2 if option in _OPTIONS_WITH_VALUE else 1
    return place, None


def option_value(command: tuple[str, ...], name: str) -> str | None:
    """Return the value of an option, given as `--name value` or `--name=value`; the last one wins."""
    value = None
    for place, word in enumerate(command):
        if word == name and place + 1 < len(command):
            value = command[place + 1]
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Something `cria run` sets for the engine, and why. `kept` when the user had set it already.

    An `option` is added to the command; anything else is a variable of the environment.
    """

    name: str
    value: str = ""
    why: str
    kept: bool = False
    option: bool = False

    def __str__(self) -> str:
        return self.name if self.option else f"{self.name}={self.value}"
