"""Leave secrets out of what is shown: values of options and variables that name a key or a token."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "***"
# Whole parts of a name, so that --max-tokens and --tokenizer stay readable.
_PART = r"(?:api)?keys?|token|secrets?|password|passwd|passphrase|credentials?|auth|authorization|cookie"
_NAME = rf"(?:\w+[.-]|\w*_)*(?:{_PART})(?:[_.-]\w+)*"
# An option may take several values: everything up to the next option.
_OPTION = re.compile(rf"(?i)(?<!\S)(--?{_NAME})(?:(=)\S+|(\s+)[^-\s]\S*(?:\s+[^-\s]\S*)*)")
_VARIABLE = re.compile(
    rf"(?i)(?<![\w-])({_NAME})(=|[\"']?\s*:\s*)(\"[^\"]*\"|'[^']*'|[^\s\"',}}]+)"
)
_BARE_OPTION = re.compile(rf"(?i)--?{_NAME}")
# Known by their form: bearer tokens, Hugging Face, OpenAI, GitHub, AWS, and the login of a URL.
_FORMS = re.compile(
    r"(?i:(?<=bearer )|(?<=basic ))\S+"
    r"|\b(?:hf_\w{8,}|sk-[\w-]{8,}|gh[opsu]_\w{8,}|github_pat_\w{8,}|AKIA[0-9A-Z]{12,})"
    r"|(?<=://)[^/\s@]+(?=@)"
)


def hide_in_text(text: str) -> str:
    """`text` without what looks like a secret."""
    text = _FORMS.sub(HIDDEN, text)
    text = _OPTION.sub(rf"\1\2\3{HIDDEN}", text)
    return _VARIABLE.sub(rf"\1\2{HIDDEN}", text)


def hide_in_words(words: Iterable[str]) -> tuple[str, ...]:
    """The arguments of a command without the values of options that name a secret."""
    shown: list[str] = []
    follows = False
    for word in words:
        if follows and not word.startswith("-"):
            shown.append(HIDDEN)
            continue  # an option such as --api-key takes several values
        follows = _BARE_OPTION.fullmatch(word) is not None
        shown.append(hide_in_text(word))
    return tuple(shown)
