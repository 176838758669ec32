"""The checks that an operation runs before it touches anything: the doctor's rows, turned into one error.

Each imports its own: those of an engine bring much that a restore would load for nothing.
"""

from __future__ import annotations

from pathlib import Path

from cria.checkpoint.handle import Checkpoint
from cria.model.inventory import Inventory
from cria.model.manifest import SAVED_FILES
from cria.operations.checks.rows import raise_first, rows_of


def dump(inventory: Inventory, output: Path) -> None:
    """Raises the error of the first check that this engine fails."""
    from cria.operations.checks import engine

    rows = [row for check in engine.ENGINE_CHECKS for row in rows_of(check, inventory)]
    rows += engine.output(inventory, output)
    raise_first(rows, f"engine {inventory.root.pid} cannot be dumped")


def restore(checkpoint: Checkpoint) -> None:
    """Raises the error of the first check that this host fails.

    PidTaken and PathTaken come last: where they are the only hindrance, namespaces are the way out.
    """
    from cria.checkpoint import saved_files
    from cria.operations.checks import restore as restore_checks

    checks = (restore_checks.pids, restore_checks.unix_names)
    rows = [row for check in checks for row in rows_of(check, checkpoint)]
    raise_first(rows, f"{checkpoint.path} cannot be restored here")
    saved_files.check_free(checkpoint.manifest.saved_files, checkpoint.path / SAVED_FILES)


def fits(checkpoint: Checkpoint) -> None:
    """Raises what keeps the engine from being restored anywhere on this host.

    That is a missing capability, or CheckpointMismatch with every file that is not as it was.
    """
    from cria.operations.checks import checkpoint as files
    from cria.operations.checks import restore as restore_checks

    checks = (restore_checks.privileges, files.recorded, files.opened)
    rows = [row for check in checks for row in rows_of(check, checkpoint)]
    raise_first(rows, f"{checkpoint.path} does not fit this host")


def lazy() -> None:
    """Raises PrivilegeMissing or CriuUnsuitable where this host cannot restore lazily."""
    from cria.errors import CriuUnsuitable, PrivilegeMissing
    from cria.memory.lazy import userfaultfd

    obstacle = userfaultfd.find_obstacle()
    if obstacle is not None:
        kind = PrivilegeMissing if obstacle.privilege else CriuUnsuitable
        raise kind(
            "this host cannot restore lazily",
            details=obstacle.why,
            remedy=obstacle.remedy,
            docs="docs/how-to/lazy.md",
        )
