"""The command of an engine: whether it starts one, its options, and what `cria run` adds to it."""

from __future__ import annotations

from pathlib import PurePosixPath

import msgspec

ENGINE_MARK = "CRIA_ENGINE"  # a variable of every engine that cria started: `cria ps` looks for it
TITLE_PREFIX = "VLLM::"
_SERVING_MODULES = ("vllm.entrypoints.", "vllm.snapshot.")
_CLI_MODULES = ("vllm", "vllm.entrypoints.cli.main")
# nixpkgs wraps programs and calls the real one .NAME-wrapped.
_PROGRAMS = ("vllm", ".vllm-wrapped")
_OPTIONS_WITH_VALUE = ("-X", "-W", "--check-hash-based-pycs")


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Something that `cria run` sets for an engine, and why. `kept` where the user had set it already.

    An `option` is added to the command; anything else is a variable of the environment.
    """

    name: str
    value: str = ""
    why: str
    kept: bool = False
    option: bool = False

    def __str__(self) -> str:
        return self.name if self.option else f"{self.name}={self.value}"


def starts_engine(argv: tuple[str, ...]) -> bool:
    """Say whether these arguments start a vLLM engine: `vllm serve ...` or `python -m vllm...`."""
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
    """Return the index of a Python program's script, and None; with -m that of its first argument, and the module."""
    index = 1
    while index < len(argv) and argv[index].startswith("-"):
        option = argv[index]
        if option == "-m":
            return index + 2, argv[index + 1] if index + 1 < len(argv) else None
        if option == "-c":
            return len(argv), None
        index += 2 if option in _OPTIONS_WITH_VALUE else 1
    return index, None


def option_value(command: tuple[str, ...], name: str) -> str | None:
    """Return the value of an option, given as `--name value` or `--name=value`; the last one wins."""
    value = None
    for index, argument in enumerate(command):
        if argument == name and index + 1 < len(command):
            value = command[index + 1]
        elif argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
    return value
