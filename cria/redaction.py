"""Redact secrets from text and commands: values that a name such as --api-key introduces, and known forms."""

from __future__ import annotations

import re
from collections.abc import Iterable

REDACTED = "***"

# Only a whole part of a name counts, so that --max-tokens and --tokenizer stay readable.
_PART = r"(?:api)?keys?|token|secrets?|password|passwd|passphrase|credentials?|auth|authorization|cookie"
_NAME = rf"(?:\w+[.-]|\w*_)*(?:{_PART})(?:[_.-]\w+)*"
_OPTION_NAME = rf"--?{_NAME}"

# --api-key VALUE... or --api-key=VALUE. vLLM's option takes several keys: all words up to the next option.
_OPTION = re.compile(rf"(?i)(?<!\S)({_OPTION_NAME})(?:(=)\S+|(\s+)[^-\s]\S*(?:\s+[^-\s]\S*)*)")
_OPTION_ALONE = re.compile(rf"(?i){_OPTION_NAME}")
# HF_TOKEN=VALUE, "api_key": "VALUE", Authorization: VALUE
_VARIABLE = re.compile(
    rf"(?i)(?<![\w-])({_NAME})(=|[\"']?\s*:\s*)(\"[^\"]*\"|'[^']*'|[^\s\"',}}]+)"
)
# HTTP credentials, tokens of Hugging Face, OpenAI, GitHub and AWS, and the login of a URL.
_FORM = re.compile(
    r"(?i:(?<=bearer )|(?<=basic ))\S+"
    r"|\b(?:hf_\w{8,}|sk-[\w-]{8,}|gh[opsu]_\w{8,}|github_pat_\w{8,}|AKIA[0-9A-Z]{12,})"
    r"|(?<=://)[^/\s@]+(?=@)"
)


def redact(text: str) -> str:
    """Return `text` with every secret replaced by REDACTED."""
    text = _FORM.sub(REDACTED, text)
    text = _OPTION.sub(rf"\1\2\3{REDACTED}", text)
    return _VARIABLE.sub(rf"\1\2{REDACTED}", text)


def redact_command(arguments: Iterable[str]) -> tuple[str, ...]:
    """Return the arguments of a command with every secret replaced; their number stays the same.

    A value is recognized by the option in front of it, also where it contains spaces.
    """
    redacted: list[str] = []
    after_secret_option = False
    for argument in arguments:
        if after_secret_option and not argument.startswith("-"):
            redacted.append(REDACTED)
            continue
        after_secret_option = _OPTION_ALONE.fullmatch(argument) is not None
        redacted.append(redact(argument))
    return tuple(redacted)
