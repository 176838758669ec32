"""Generate the pages of the documentation that follow from the code: errors.md, commands.md, schema/, speed.md.

With --check nothing is written; the exit status is 1 when a page is out of date.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from benchmarks import picture, table
from benchmarks.document import Bench
from cria.cli import cli
from cria.cli.schemas import DOCUMENTS, schema_text
from cria.errors import CriaError, all_kinds

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE, EXPLANATION = DOCS / "reference", DOCS / "explanation"
GENERATED = "<!-- made by `make docs`; change the code instead -->"
FIGURES, END_OF_FIGURES = "<!-- figures: made by `make figures` -->", "<!-- end of figures -->"


def main() -> None:
    documents: dict[str, type[msgspec.Struct]] = {**DOCUMENTS, "bench": Bench}
    pages = {
        REFERENCE / "errors.md": errors_page(),
        REFERENCE / "commands.md": commands_page(),
        **{
            REFERENCE / "schema" / f"{name}.json": schema_text(document)
            for name, document in documents.items()
        },
        **speed_pages(),
    }
    if "--check" in sys.argv[1:]:
        outdated = [path for path, text in pages.items() if print_difference(path, text)]
        sys.exit(1 if outdated else 0)
    for path, text in pages.items():
        path.write_text(text)
        print(path.relative_to(DOCS.parent))


def print_difference(path: Path, text: str) -> bool:
    """Print how a page differs from `text`, and return whether it does."""
    old = path.read_text() if path.exists() else ""
    sys.stdout.writelines(
        difflib.unified_diff(old.splitlines(True), text.splitlines(True), str(path), "make docs")
    )
    return old != text


def speed_pages() -> dict[Path, str]:
    """Return the figures that `make figures` has stored, as tables in a page and as a picture."""
    bench = table.read(EXPLANATION / "speed.json")
    page = EXPLANATION / "speed.md"
    before, _, rest = page.read_text().partition(FIGURES)
    _, _, after = rest.partition(END_OF_FIGURES)
    figures = "\n\n".join(["", *table.markdown(bench), ""])
    return {
        EXPLANATION / "speed.svg": picture.draw(bench),
        page: f"{before}{FIGURES}{figures}{END_OF_FIGURES}{after}",
    }


def errors_page() -> str:
    kinds: list[type[CriaError]] = [CriaError, *all_kinds()]
    rows = [
        f"| {kind.exit_status} | [`{kind.code}`](#{kind.code}) | {meaning(kind)} |"
        for kind in kinds
    ]
    parts = [
        GENERATED,
        "# Errors and exit statuses",
        "An error has four parts: what happened, why, how to fix it, where to read on. With `--json`"
        " they are the fields `message`, `details`, `remedy`, `docs` and `log` of one document.",
        "Other statuses: 0 done, 3 done with warnings, 128+N ended by signal N.",
        "\n".join(["| status | code | meaning |", "|---|---|---|", *rows]),
    ]
    for kind in kinds:
        parts += [f"## {kind.code}", f"Exit status {kind.exit_status}. {meaning(kind)}"]
        if kind.default_remedy:
            parts.append(f"Remedy: {kind.default_remedy}")
    return "\n\n".join(parts) + "\n"


def meaning(kind: type[CriaError]) -> str:
    """Return the first line of an error's docstring."""
    if kind is CriaError:
        return "Something that cria did not foresee: a bug in cria."
    return (kind.__doc__ or "").splitlines()[0]


def commands_page() -> str:
    context = click.Context(
        cli, info_name="cria", terminal_width=100, max_content_width=100, **cli.context_settings
    )
    parts = [GENERATED, "# Commands", help_text(context), *subcommands(cli, context)]
    return "\n\n".join(parts) + "\n"


def subcommands(group: click.Group, context: click.Context) -> Iterator[str]:
    """Yield a heading and the help of each command of `group`, and of the groups among them."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        child = click.Context(command, info_name=name, parent=context)
        yield f"## {child.command_path}"
        yield help_text(child)
        if isinstance(command, click.Group):
            yield from subcommands(command, child)


def help_text(context: click.Context) -> str:
    return f"```\n{context.command.get_help(context)}\n```"


if __name__ == "__main__":
    main()
