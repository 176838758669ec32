"""cria demo: the whole story, told as it happens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cria.cli import output

if TYPE_CHECKING:
    from cria.demo import DemoFacts


@click.command
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Keep model, log and checkpoint here."
)
@click.option("--tensor-parallel", type=int, default=1, help="Tensor-parallel ranks of the engine.")
@click.option("--keep", is_flag=True, help="Leave the restored engine running.")
@output.json_option
@output.progress_option
def command(
    directory: Path | None, tensor_parallel: int, keep: bool, as_json: bool, progress: str
) -> None:
    """Start vLLM on the CPU with a tiny random model, dump it, restore it on another port.

    Compares the tokens of before and after, and prints what each part took.
    """
    from cria.demo import demo

    facts = demo(
        directory,
        tensor_parallel=tensor_parallel,
        keep=keep,
        say=lambda line: click.echo(f"{click.style('cria', bold=True)}  {line}", err=True),
        listener=output.listener(progress),
    )
    output.document(facts) if as_json else click.echo(_table(facts))
    if not facts.tokens_equal:
        raise SystemExit(1)


def _table(facts: DemoFacts) -> str:
    rows = [
        ("cold start to first token", f"{facts.cold_first_token_s:.1f} s"),
        ("dump", f"{facts.dump_s:.2f} s"),
        ("restore until healthy", f"{facts.restore_s:.2f} s"),
        ("restore to first token", f"{facts.first_token_s:.2f} s"),
        ("faster than the cold start", f"{facts.speedup:.0f} times"),
        ("checkpoint", output.size(facts.checkpoint_bytes)),
        ("ports moved", str(facts.ports_moved)),
        ("url before, after", f"{facts.old_url}  {facts.url}"),
        ("same tokens", "yes" if facts.tokens_equal else "NO"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)
