"""cria kubernetes prune: remove old archives of a node and show which."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cria.cli import output
from cria.model.units import size

if TYPE_CHECKING:
    from cria.kubernetes.kubelet.prune import PruneResult

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(click.ParamType):  # type: ignore[type-arg] # generic since click 8.2 only
    """A number of bytes, as Kubernetes writes it: 500Mi, 2Gi, 1T."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        quantity = re.fullmatch(r"(\d+)([KMGT]?)i?", str(value))
        if quantity is None:
            self.fail(f"{value!r} is not a size such as 500Mi or 2Gi", param, ctx)
        return int(quantity[1]) * _UNITS[quantity[2]]


@click.command
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(1), help="Keep the newest archives of each container.")
@click.option(
    "--most", "max_bytes", type=Size(), help="Keep this many bytes in all, of the newest archives."
)
@click.option(
    "--days", type=click.FloatRange(min=0), help="Remove archives that are older, the newest too."
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed and change nothing.")
@output.json_option
def command(
    directory: Path,
    keep: int | None,
    max_bytes: int | None,
    days: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove old archives from DIRECTORY of a node, such as /var/lib/kubelet/checkpoints.

    Only archives with a manifest of cria are removed. The newest of each container is removed only for its age.
    """
    from cria.kubernetes.kubelet.prune import RetentionPolicy, prune

    policy = RetentionPolicy(keep=keep, max_bytes=max_bytes, days=days)
    result = prune(directory, policy, dry_run=dry_run)
    output.document(result) if as_json else click.echo(result_table(result))


def result_table(result: PruneResult) -> str:
    """Return a table with a row for each archive that is removed, and a line about the others."""
    rows = [
        (
            removal.archive.container,
            size(removal.archive.bytes),
            removal.why,
            removal.archive.path,
        )
        for removal in result.removed
    ]
    table = [output.table(("container", "size", "why", "archive"), rows)] if rows else []
    verb = "would be freed" if result.dry_run else "freed"
    kept = size(sum(archive.bytes for archive in result.kept))
    others = f", and {result.others} without a manifest" if result.others else ""
    last = f"{size(result.freed_bytes)} {verb}; {len(result.kept)} of {kept} stay{others}"
    return "\n".join([*table, last])
