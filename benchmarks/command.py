"""cria bench: measure a cold start, CRIU alone and cria in each of its modes, and print one table."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from benchmarks.document import Engine
from benchmarks.picture import draw
from benchmarks.run import Plan, bench
from benchmarks.table import read, table
from cria.cli import output

_IN_NAMESPACES = "CRIA_BENCH_INSIDE"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--rounds",
    type=click.IntRange(1, 50),
    default=3,
    show_default=True,
    help="Number of rounds; each starts every engine once.",
)
@click.option(
    "--kv",
    default="1",
    metavar="GIB,...",
    show_default=True,
    help="Sizes of the KV cache.",
)
@click.option(
    "--tp",
    default="1",
    metavar="N,...",
    show_default=True,
    help="Numbers of tensor-parallel ranks.",
)
@click.option(
    "--model-mb",
    default="10",
    metavar="MB,...",
    show_default=True,
    help="Sizes of the model's weights.",
)
@click.option(
    "--clones",
    type=click.IntRange(0, 64),
    default=4,
    show_default=True,
    help="Number of clones to restore at once; 0 for none.",
)
@click.option("--quick", is_flag=True, help="One round with a small KV cache and two clones.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Write the checkpoints in this directory; they are removed at the end.",
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw the figures as an SVG file.",
)
@click.option(
    "--from",
    "stored",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing; show a document that --json printed.",
)
@output.json_option
@click.argument("command_line", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
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
    command_line: tuple[str, ...],
) -> None:
    """Compare a cold start, CRIU alone and cria in each of its modes on the same engine.

    The engine is a tiny model on the CPU, or CMD (vllm serve MODEL --port auto). --kv, --tp and
    --model-mb take several values: the first values make up the base engine, and each further value is
    measured with the base values of the other two options.
    """
    if stored is not None:
        measured = read(stored)
    else:
        _enter_namespaces()
        if quick:
            rounds, clones, kv = 1, min(clones, 2), "0.25"
        plan = Plan(
            rounds=rounds,
            engines=_engines(kv, tp, model_mb),
            command=command_line,
            clones=clones,
        )
        measured = bench(plan, directory, say=lambda line: click.echo(line, err=True))
    if picture is not None:
        picture.write_text(draw(measured))
    output.document(measured) if as_json else click.echo(table(measured))
    troubles = [trouble for engine in measured.engines for trouble in engine.troubles]
    for trouble in troubles:
        click.echo(f"{click.style('warning', fg='yellow')}: {trouble}", err=True)
    if troubles:
        sys.exit(3)


def _enter_namespaces() -> None:
    """Start this command again in a PID namespace and with a /dev/shm of its own.

    CRIU alone restores the PIDs and the paths of its dump, which other processes of the host may have
    taken meanwhile. Whatever is left in the namespaces ends with this process.
    """
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0 or os.environ.get(_IN_NAMESPACES):
        return
    os.environ[_IN_NAMESPACES] = "1"
    namespaces = [unshare, "--pid", "--fork", "--mount-proc", "--kill-child"]
    mount_shm = 'mount -t tmpfs -o mode=1777 cria-bench /dev/shm && exec "$@"'
    bench_again = [sys.executable, "-m", "cria", *sys.argv[1:]]
    os.execv(unshare, [*namespaces, "--", "sh", "-c", mount_shm, "sh", *bench_again])


def _engines(kv: str, tp: str, model_mb: str) -> tuple[Engine, ...]:
    """Return the base engine, then one for each further value."""
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
        numbers = [kind(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise click.UsageError(f"{option} takes numbers above 0, as in {option} 1,2; not {text!r}")
    return numbers
