"""cria kubernetes prune: parse, call cria.kubernetes.kubelet.prune, show what goes."""

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
        words = re.fullmatch(r"(\d+)([KMGT]?)i?", str(value))
        if words is None:
            self.fail(f"{value!r} is not a size such as 500Mi or 2Gi", param, ctx)
        return int(words[1]) * _UNITS[words[2]]


@click.command
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(1), help="So many of each container, the newest.")
@click.option("--most", type=Size(), help="So many bytes in all: the oldest go first.")
@click.option("--days", type=click.FloatRange(min=0), help="None that is older.")
@click.option("--dry-run", is_flag=True, help="Show it and touch nothing.")
@output.json_option
def command(
    directory: Path,
    keep: int | None,
    most: int | None,
    days: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove old archives from DIRECTORY, a node's: /var/lib/kubelet/checkpoints.

    Only those that cria has recorded. The newest of a container goes by its age alone.
    """
    from cria.kubernetes.kubelet.prune import RetentionPolicy, prune

    done = prune(directory, RetentionPolicy(keep=keep, most_bytes=most, days=days), dry_run=dry_run)
    output.document(done) if as_json else click.echo(shown(done))


def shown(done: PruneResult) -> str:
    """A row for each that goes, then what is left."""
    rows = [
        (each.archive.container, size(each.archive.bytes), each.why, each.archive.path)
        for each in done.removed
    ]
    table = [output.table(("container", "size", "why", "archive"), rows)] if rows else []
    verb = "would be freed" if done.dry_run else "freed"
    kept = size(sum(each.bytes for each in done.kept))
    others = f", {done.others} that cria has not recorded" if done.others else ""
    last = f"{size(done.freed_bytes)} {verb}; {len(done.kept)} of {kept} stay{others}"
    return "\n".join([*table, last])
