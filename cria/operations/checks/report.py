"""The doctor's findings as a document for programs, and as text for a bug report, without secrets."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import msgspec

from cria.model.inventory import Inventory
from cria.model.version import VERSION
from cria.operations.checks.diagnosis import Diagnosis
from cria.operations.checks.rows import Level, Row
from cria.redaction import redact, redact_command
from cria.system.procfs import environment

# What decides how an engine behaves; of every other variable not even the name is told.
_TELLING = ("VLLM_", "NCCL_", "GLOO_", "CUDA_", "TORCH_", "OMP_", "UV_", "CRIA_", "UCX_", "HF_HUB_")
_PACKAGES = ("msgspec", "protobuf", "psutil", "pyroute2", "click")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `code` is that of the error it would end a dump or restore with, where `level` is fail.

    `pid` and `fd` say who holds the thing. `recorded` is what the checkpoint knows of it, `value` is
    then what is here. `remedy` is a command where there is one.
    """

    group: str
    subject: str
    value: str
    level: Level
    remedy: str | None
    code: str | None
    pid: int | None
    fd: int | None
    recorded: str | None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many findings there are of each level."""

    ok: int
    warn: int
    fail: int
    skip: int


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """`cria doctor --json`. `target` is the PID of the engine's root, or the checkpoint's path.

    `exit_status` is what the command ends with: 0, or that of the first failed finding.
    """

    schema_version: Literal[1] = 1
    about: Literal["host", "engine", "checkpoint"]
    target: str
    ready: bool
    verdict: str
    exit_status: int
    counts: Counts
    findings: tuple[Finding, ...]


def document(diagnosis: Diagnosis) -> Document:
    """The findings for programs."""
    return Document(
        about=diagnosis.about,
        target=diagnosis.target,
        ready=diagnosis.exit_status == 0,
        verdict=verdict(diagnosis),
        exit_status=diagnosis.exit_status,
        counts=counts(diagnosis),
        findings=tuple(map(_finding, diagnosis.rows)),
    )


def counts(diagnosis: Diagnosis) -> Counts:
    return Counts(
        ok=diagnosis.count("ok"),
        warn=diagnosis.count("warn"),
        fail=diagnosis.count("fail"),
        skip=diagnosis.count("skip"),
    )


def verdict(diagnosis: Diagnosis) -> str:
    """One sentence and the counts."""
    ready = diagnosis.exit_status == 0
    fields = {
        "host": "this host is ready" if ready else "this host is not ready",
        "engine": f"engine {diagnosis.target} can{'' if ready else 'not'} be dumped",
        "checkpoint": f"{diagnosis.target} {'would' if ready else 'would not'} restore here and now",
    }[diagnosis.about]
    number = counts(diagnosis)
    return (
        f"{fields}: {number.ok} ok, {number.warn} warn, {number.fail} fail, {number.skip} skipped"
    )


def bug_report(diagnosis: Diagnosis) -> str:
    """Markdown to paste: versions, findings, and what an engine is made of. Home and secrets are out."""
    lines = [
        "### cria doctor",
        *(f"- {name}: {text}" for name, text in _versions()),
        "",
        *(_line(row) for row in diagnosis.rows),
        "",
        f"**{verdict(diagnosis)}**",
    ]
    if diagnosis.inventory is not None:
        lines += ["", *_engine(diagnosis.inventory, live=diagnosis.about == "engine")]
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home raises where there is none
    text = redact("\n".join(lines))
    return text.replace(f"{home}/", "~/") if home != "/" else text


def _versions() -> Iterator[tuple[str, str]]:
    yield "cria", VERSION
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    yield "python", sys.version.split()[0]
    yield "system", f"{_system()}, kernel {platform.release()} {platform.machine()}"
    yield "processors", str(os.cpu_count())


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _line(row: Row) -> str:
    return f"- {row.level}: {row.group}: {row.subject}: {row.told()}"


def _engine(inventory: Inventory, *, live: bool) -> Iterator[str]:
    top = inventory.topology
    yield f"- layout: TP={top.tensor} PP={top.pipeline} DP={top.data}, {top.api_servers} API servers"
    for process in inventory.processes:
        command = " ".join(redact_command(process.command)).strip()
        memory = f"{process.memory.resident >> 20} MiB"
        yield f"- {process.role.name}, {process.threads} threads, {memory}: `{command}`"
    if live:
        for name, value in sorted(environment(inventory.root.pid).items()):
            if name.startswith(_TELLING):
                yield f"- {redact(f'{name}={value}')}"


def _finding(row: Row) -> Finding:
    return Finding(
        group=row.group,
        subject=row.subject,
        value=row.value,
        level=row.level,
        remedy=row.remedy,
        code=row.kind.code if row.level == "fail" else None,
        pid=row.pid,
        fd=row.fd,
        recorded=row.recorded,
    )
