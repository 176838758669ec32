"""One word for one thing, and the field's own: the words of an earlier, private language do not come back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A private word, and the field's own. CONTRIBUTING.md has the table.
WORDS = {
    r"still[ _-]?points?": "quiesced, quiesce, resume",
    r"stand(s|ing)? still|stood still": "is quiesced, is frozen, does not change",
    r"naps?|napped|napping": "back off",
    r"roll[ _]calls?": "presence check",
    r"attendants?": "fault handler",
    r"handover": "uffd handoff",
    r"belongings": "engine files",
    r"leftovers?": "cleanup, what was left behind",
    r"kin|kinship": "group",
    r"wish(es)?": "request",
    r"homeless": "unassigned",
    r"dialled": "outgoing",
    r"fleets?": "replicas, clones",
    r"the part (of cria )?inside|cria inside (an|this|the|its) engine": "the agent",
    r"shall": "must, will, or the present tense",
    r"anew": "again, or the verb alone",
    r"whoever": "a sentence with a subject",
    r"likewise": "say it",
    r"the same of": "say it",
    r"twice is once": "a second call does nothing",
}
# Where a private word is the name of a contract, or the history of one.
ALLOWED = {
    "at-still-point",  # a stage of hooks, hooks/README.md
    "at_still_point",
    "no still point",  # what nodes with an older action script print
    "Wishes",  # its name in cria 0.1, in cria/ports.py
}
EXEMPT = {"CHANGELOG.md", "CONTRIBUTING.md", "tests/unit/test_glossary.py"}
LOCALS = {"each", "found", "known", "told", "words", "said", "it"}

# Rooms that are not reworded yet: a room leaves this list and does not come back.
NOT_YET = (
    "cria/gpu/",
    "cria/memory/lazy/",
    "docs/reference/",
)

SOURCES = sorted(
    path
    for pattern in ("cria/**/*.py", "benchmarks/*.py", "scripts/*.py", "hooks/**/*.md")
    for path in ROOT.glob(pattern)
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*")])
FILES = [
    path
    for path in [*SOURCES, *PAGES]
    if path.is_file()
    and str(path.relative_to(ROOT)) not in EXEMPT
    and not str(path.relative_to(ROOT)).startswith(NOT_YET)
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def private_words(text: str) -> Iterator[str]:
    for word in ALLOWED:
        text = text.replace(word, "")
    for number, line in enumerate(text.splitlines(), 1):
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", line)
        for pattern, better in WORDS.items():
            if re.search(rf"(?<![\w-])({pattern})(?![\w-])", plain, re.IGNORECASE):
                yield f"{number}: {line.strip()[:100]}   not {pattern} but: {better}"


def private_locals(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in LOCALS:
            yield f"{node.lineno}: a local named {node.id} says nothing"
        elif isinstance(node, ast.arg) and node.arg in LOCALS:
            yield f"{node.lineno}: a parameter named {node.arg} says nothing"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_field_s_words_are_used(path: Path) -> None:
    text = path.read_text(errors="replace")
    hits = list(private_words(text))
    if path.suffix == ".py":
        hits += private_locals(text)

    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    "text", ["def still_point(): ...", "class StillPoint: ...", "# it naps", "wishes = 1"]
)
def test_the_test_can_fail(text: str) -> None:
    assert list(private_words(text))


def test_contracts_keep_their_names() -> None:
    assert not list(private_words('stage = "at-still-point"'))
