"""The doctor's three examinations: of this host, of an engine, of a checkpoint."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from cria.checkpoint.handle import Checkpoint
from cria.criu import program
from cria.errors import PathTaken, PidTaken, PrivilegeMissing
from cria.model import manifest
from cria.model.inventory import Inventory
from cria.model.manifest import MANIFEST
from cria.operations.checks import checkpoint as files
from cria.operations.checks import checkpoint as recorded
from cria.operations.checks import criu as criu_checks
from cria.operations.checks import engine as engine_checks
from cria.operations.checks import gpu as gpu_checks
from cria.operations.checks import host as beside
from cria.operations.checks import host as host_checks
from cria.operations.checks import restore
from cria.operations.checks.processes import size_and_time
from cria.operations.checks.rows import Level, Row, rows_of
from cria.redaction import redact
from cria.system.memory import with_zeros

Checks = Iterable[Callable[..., Iterable[Row]]]

CHECKPOINT_CHECKS: tuple[tuple[str, tuple[restore.Check, ...]], ...] = (
    ("Checkpoint", (recorded.whole, recorded.tcp_close)),
    (
        "Host",
        (
            restore.privileges,
            recorded.machine,
            recorded.cpu,
            recorded.criu_version,
            recorded.room,
            gpu_checks.checkpoint,
        ),
    ),
    ("PIDs and ports", (restore.pids_now, recorded.ports)),
    ("Paths and files", (recorded.paths, restore.unix_names, files.all_same)),
)


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All findings about one thing, in groups; `target` is a PID or a path, empty for this host."""

    about: Literal["host", "engine", "checkpoint"]
    target: str
    rows: tuple[Row, ...]
    inventory: Inventory | None = None

    def count(self, level: Level) -> int:
        return Counter(row.level for row in self.rows)[level]

    @property
    def exit_status(self) -> int:
        """0, or the status that the first failed finding would end a dump or a restore with."""
        failed = (row.kind.exit_status for row in self.rows if row.level == "fail")
        return next(failed, 0)


def host(place: str | os.PathLike[str] = ".") -> Diagnosis:
    """Whether this host can dump and restore; `place` is where checkpoints would be written."""
    where = Path(place).absolute()
    rows = [
        *_group("Host", host_checks.HOST_CHECKS, where),
        *_group("CRIU", criu_checks.CRIU_CHECKS, where),
        *_group("GPU", gpu_checks.GPU_CHECKS, where),
        *_group("Container runtime", beside.RUNTIME_CHECKS, where),
    ]
    return Diagnosis(about="host", target="", rows=tuple(rows))


def engine(
    target: int | None = None,
    *,
    port: int | None = None,
    any_process: bool = False,
    place: str | os.PathLike[str] = ".",
) -> Diagnosis:
    """Whether an engine can be dumped now, how large and how fast, were it written at `place`.

    Raises NoSuchProcess, NotAnEngine, AmbiguousTarget or PrivilegeMissing.
    """
    from cria.engine.inventory import discovery
    from cria.engine.inventory.collect import collect_inventory

    where = Path(place).absolute()
    root = target if any_process and target is not None else discovery.find_engine(target, port)
    inventory = collect_inventory(root, any_process=any_process)
    rows = [
        *_group("Engine", engine_checks.ENGINE_CHECKS, inventory),
        *_group("Engine", engine_checks.ENGINE_ADVICE, inventory),
        *_group("Room", (engine_checks.room,), inventory, where),
    ]
    if not any(row.level == "fail" and row.group == "Engine" for row in rows):
        rows.insert(0, _nothing_in_the_way(inventory))
    inventory = _with_zeros(inventory)
    rows += _group("Expected", (size_and_time,), inventory, where)
    return Diagnosis(
        about="engine", target=str(inventory.root.pid), rows=tuple(rows), inventory=inventory
    )


def checkpoint(path: str | os.PathLike[str]) -> Diagnosis:
    """Whether a checkpoint would come back here and now, with every mismatch at once.

    Raises CheckpointMissing, CheckpointNewer, PrivilegeMissing, CriuMissing, and CheckpointDamaged
    where not even the manifest can be read.
    """
    place = Path(path).absolute()
    try:
        opened = Checkpoint(place, manifest.read(place / MANIFEST))
    except PermissionError as error:
        raise PrivilegeMissing(f"{place} cannot be read", details=str(error)) from error
    program.find()  # without CRIU there is one answer, not one from each check
    rows = [
        _softened(row)
        for group, checks in CHECKPOINT_CHECKS
        for row in _group(group, checks, opened)
    ]
    return Diagnosis(
        about="checkpoint",
        target=str(place),
        rows=tuple(rows),
        inventory=opened.manifest.inventory,
    )


def _group(name: str, checks: Checks, *facts: Any) -> Iterator[Row]:
    for check in checks:
        for row in rows_of(check, *facts):
            yield msgspec.structs.replace(
                row,
                group=name,
                subject=redact(row.subject),
                value=redact(row.value).strip(),
            )


def _softened(row: Row) -> Row:
    """A restore goes round PIDs and paths that are taken: the engine gets namespaces of its own."""
    if row.level == "fail" and row.kind in (PidTaken, PathTaken):
        remedy = f"nothing: cria restore gives it namespaces of its own. Or {row.remedy}"
        return msgspec.structs.replace(row, level="warn", remedy=remedy)
    return row


def _nothing_in_the_way(inventory: Inventory) -> Row:
    counts = f"{len(inventory.processes)} processes, {len(inventory.descriptors)} descriptors"
    sockets = len(inventory.sockets) + len(inventory.unix_sockets)
    return Row(
        group="Engine",
        subject="blockers",
        value=f"none among {counts}, {sockets} sockets",
        level="ok",
    )


def _with_zeros(inventory: Inventory) -> Inventory:
    looked = tuple(map(with_zeros, inventory.processes))
    return msgspec.structs.replace(inventory, processes=looked)
