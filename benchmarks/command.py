"""cria bench: one run, one table: a cold start, CRIU alone, and cria in each of its modes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cria.cli import output

if TYPE_CHECKING:
    from benchmarks.document import Engine

_INSIDE = "CRIA_BENCH_INSIDE"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--rounds", type=click.IntRange(1, 50), default=3, help="Cold starts of each engine.")
@click.option("--kv", default="1", metavar="GIB,...", help="KV cache sizes, each measured.")
@click.option("--tp", default="1", metavar="N,...", help="Tensor-parallel ranks, each measured.")
@click.option("--model-mb", default="10", metavar="MB,...", help="Sizes of weights, each measured.")
@click.option("--clones", type=click.IntRange(0, 64), default=4, help="At once; 0 for none.")
@click.option("--quick", is_flag=True, help="One round with a small cache and two clones.")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Where checkpoints lie while it runs."
)
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw it as an SVG, too."
)
@click.option(
    "--from",
    "stored",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: show a document that --json printed.",
)
@output.json_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
def command(
    rounds: int,
    kv: str,
    tp: str,
    model_mb: str,
    clones: int,
    quick: bool,
    directory: Path | None,
    picture: Path | None,
    stored: Path | None,
    as_json: bool,
    words: tuple[str, ...],
) -> None:
    """Measure cold start, CRIU alone and cria by turns, on this machine and with the same engine.

    The engine is a tiny model on the CPU, or CMD (vllm serve MODEL --port auto). Of several values for
    --kv, --tp and --model-mb the first are the base, from which each other value is tried alone.
    """
    from benchmarks.picture import draw
    from benchmarks.run import Plan, bench
    from benchmarks.table import read, table

    if stored is not None:
        measured = read(stored)
    else:
        _live_apart()
        if quick:
            rounds, clones = 1, min(clones, 2)
        engines = _engines("0.25" if quick else kv, tp, model_mb)
        plan = Plan(rounds=rounds, engines=engines, command=words, clones=clones)
        measured = bench(plan, directory, say=lambda line: click.echo(line, err=True))
    if picture is not None:
        picture.write_text(draw(measured))
    output.document(measured) if as_json else click.echo(table(measured))
    troubles = [trouble for engine in measured.engines for trouble in engine.troubles]
    for trouble in troubles:
        click.echo(f"{click.style('warning', fg='yellow')}: {trouble}", err=True)
    if troubles:
        sys.exit(3)


def _live_apart() -> None:
    """Go on with PIDs and a /dev/shm of one's own: CRIU alone needs those of its dump, and others take them.

    Whatever was started there, or left, ends with this process, however that ends.
    """
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0 or os.environ.get(_INSIDE):
        return
    os.environ[_INSIDE] = "1"
    way = [unshare, "--pid", "--fork", "--mount-proc", "--kill-child", "--", "sh", "-c"]
    shm = 'mount -t tmpfs -o mode=1777 cria-bench /dev/shm && exec "$@"'
    os.execv(unshare, [*way, shm, "sh", sys.executable, "-m", "cria", *sys.argv[1:]])


def _engines(kv: str, tp: str, model_mb: str) -> tuple[Engine, ...]:
    """The base, and then each further value alone."""
    from benchmarks.document import Engine

    caches, ranks = _numbers("--kv", kv, float), _numbers("--tp", tp, int)
    models = _numbers("--model-mb", model_mb, int)
    base = Engine(kv_gib=caches[0], ranks=int(ranks[0]), model_mb=int(models[0]))
    return (
        base,
        *(Engine(kv_gib=x, ranks=base.ranks, model_mb=base.model_mb) for x in caches[1:]),
        *(Engine(kv_gib=base.kv_gib, ranks=int(x), model_mb=base.model_mb) for x in ranks[1:]),
        *(Engine(kv_gib=base.kv_gib, ranks=base.ranks, model_mb=int(x)) for x in models[1:]),
    )


def _numbers(option: str, text: str, kind: type[float]) -> list[float]:
    try:
        found = [kind(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise click.UsageError(f"{option} takes numbers above 0, as in {option} 1,2; not {text!r}")
    return found
