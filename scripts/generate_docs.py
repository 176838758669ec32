"""Write the pages that the code itself knows: errors.md, commands.md, schema/; and the figures of speed.md.

With --check nothing is written; the exit status is 1 when a page differs from what it would be.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import click
import msgspec

from benchmarks import picture, table
from benchmarks.document import Bench
from cria.cli import cli
from cria.cli.schemas import DOCUMENTS, schema_text
from cria.errors import CriaError, all_kinds

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
SPEED = REFERENCE.parent / "explanation"
FIGURES, END = "<!-- figures: made by `make figures` -->", "<!-- end of figures -->"
MADE = "<!-- made by `make docs`; change the code instead -->"


def main() -> None:
    pages = {
        REFERENCE / "errors.md": errors_page(),
        REFERENCE / "commands.md": commands_page(),
    }
    documents: dict[str, type[msgspec.Struct]] = {**DOCUMENTS, "bench": Bench}
    for name, document in documents.items():
        pages[REFERENCE / "schema" / f"{name}.json"] = schema_text(document)
    pages |= speed_pages()
    if "--check" in sys.argv[1:]:
        different = [path for path, text in pages.items() if differs(path, text)]
        sys.exit(1 if different else 0)
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path, text in pages.items():
        path.write_text(text)
        print(path.relative_to(REFERENCE.parent.parent))


def differs(path: Path, text: str) -> bool:
    old = path.read_text() if path.exists() else ""
    sys.stdout.writelines(
        difflib.unified_diff(old.splitlines(True), text.splitlines(True), str(path), "make docs")
    )
    return old != text


def speed_pages() -> dict[Path, str]:
    """The figures of the benchmark that `make figures` stored, as a table and as a picture."""
    bench = table.read(SPEED / "speed.json")
    before, _, rest = (SPEED / "speed.md").read_text().partition(FIGURES)
    _, _, after = rest.partition(END)
    figures = "\n\n".join(["", *table.markdown(bench), ""])
    return {
        SPEED / "speed.svg": picture.draw(bench),
        SPEED / "speed.md": f"{before}{FIGURES}{figures}{END}{after}",
    }


def errors_page() -> str:
    kinds: list[type[CriaError]] = [CriaError, *all_kinds()]
    rows = [f"| {k.exit_status} | [`{k.code}`](#{k.code}) | {sentence(k)} |" for k in kinds]
    parts = [
        MADE,
        "# Errors and exit statuses",
        "An error has four parts: what happened, why, how to mend it, where to read on. With `--json`"
        " they are the fields `message`, `details`, `remedy`, `docs` and `log` of one document.",
        "Other statuses: 0 done, 3 done with warnings, 128+N ended by signal N.",
        "\n".join(["| status | code | meaning |", "|---|---|---|", *rows]),
    ]
    for kind in kinds:
        parts += [f"## {kind.code}", f"Exit status {kind.exit_status}. {sentence(kind)}"]
        if kind.default_remedy:
            parts.append(f"Remedy: {kind.default_remedy}")
    return "\n\n".join(parts) + "\n"


def sentence(kind: type[CriaError]) -> str:
    if kind is CriaError:
        return "Something that cria did not foresee: a bug in cria."
    return (kind.__doc__ or "").splitlines()[0]


def commands_page() -> str:
    parts = [MADE, "# Commands", help_of(cli, "cria"), *verbs_of(cli, "cria")]
    return "\n\n".join(parts) + "\n"


def verbs_of(group: click.Group, name: str, parent: click.Context | None = None) -> list[str]:
    """A heading and the help of each verb of `group`, and of the verbs of those that are groups."""
    parts = []
    with click.Context(group, info_name=name, parent=parent) as context:
        for verb in group.list_commands(context):
            command = group.get_command(context, verb)
            assert command is not None
            parts += [f"## {context.command_path} {verb}", help_of(command, verb, context)]
            if isinstance(command, click.Group):
                parts += verbs_of(command, verb, context)
    return parts


def help_of(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    """A command's help text, as wide on every terminal."""
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=100,
        max_content_width=100,
        **({} if parent else command.context_settings),
    )
    return f"```\n{command.get_help(context)}\n```"


if __name__ == "__main__":
    main()
