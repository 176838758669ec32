"""cria demo: run the demo and print what it measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cria.cli import output
from cria.model.units import duration, size

if TYPE_CHECKING:
    from cria.demo import DemoFacts


@click.command
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Keep the model, the log and the checkpoint in this directory.",
)
@click.option(
    "--tensor-parallel",
    type=int,
    default=1,
    show_default=True,
    help="Number of tensor-parallel ranks of the engine.",
)
@click.option("--keep", is_flag=True, help="Keep the restored engine running.")
@output.json_option
@output.progress_option
def command(
    directory: Path | None, tensor_parallel: int, keep: bool, as_json: bool, progress: str
) -> None:
    """Start vLLM on the CPU with a tiny model, dump it and restore it on another port.

    The model has random weights. The demo compares the tokens that the engine generates before and
    after, and prints how long each part took.
    """
    from cria.demo import demo

    facts = demo(
        directory,
        tensor_parallel=tensor_parallel,
        keep=keep,
        say=lambda line: click.echo(f"{click.style('cria', bold=True)}  {line}", err=True),
        listener=output.listener(progress),
    )
    if as_json:
        output.document(facts)
    else:
        click.echo(f"\n{_table(facts)}")
    if not facts.tokens_equal:
        raise SystemExit(1)


def _table(facts: DemoFacts) -> str:
    return output.properties(
        [
            ("cold start to first token", duration(facts.cold_first_token_s)),
            ("dump", duration(facts.dump_s)),
            ("restore until healthy", duration(facts.restore_s)),
            ("restore to first token", duration(facts.first_token_s)),
            ("faster than the cold start", f"{facts.speedup:.0f} times"),
            ("checkpoint", size(facts.checkpoint_bytes)),
            ("ports moved", str(facts.ports_moved)),
            ("url before, after", f"{facts.old_url}  {facts.url}"),
            ("same tokens", "yes" if facts.tokens_equal else "NO"),
        ]
    )
