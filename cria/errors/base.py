"""Every error cria raises: what happened, why, how to mend it, and the exit status it ends with."""

from __future__ import annotations

from typing import ClassVar


class CriaError(Exception):
    """An error with the four parts a user needs: what, why, fix, see.

    `message` names the object it is about; `details` are gathered facts, one per line; `remedy` is
    a command or a setting; `docs` a page of the documentation; `log` the path of a log file.
    """

    code: ClassVar[str] = "bug"
    exit_status: ClassVar[int] = 1
    default_remedy: ClassVar[str | None] = None
    default_docs: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        details: str | None = None,
        remedy: str | None = None,
        docs: str | None = None,
        log: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.remedy = remedy or self.default_remedy
        self.docs = docs or self.default_docs or f"docs/reference/errors.md#{self.code}"
        self.log = log

    def to_json(self) -> dict[str, str | None]:
        return {
            "code": self.code,
            "message": self.message,
            "details": self.details,
            "remedy": self.remedy,
            "docs": self.docs,
            "log": self.log,
        }


class UsageError(CriaError):
    """The words on the command line, or the arguments of a call, do not fit."""

    code = "usage"
    exit_status = 2
    default_remedy = "cria --help"
