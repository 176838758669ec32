"""cria dump: parse, call cria.dump, print the checkpoint's path."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from cria.cli import output


@click.command
@click.argument("target", type=int, required=False, metavar="[PID]")
@click.option(
    "-o", "--output", "place", type=click.Path(path_type=Path), help="The new checkpoint directory."
)
@click.option("--port", type=int, help="Name the engine by its HTTP port instead of a PID.")
@click.option("--leave-running", is_flag=True, help="The engine goes on serving.")
@click.option(
    "--skip-in-flight", is_flag=True, help="Drop connections that no process has accepted yet."
)
@click.option("--compress", is_flag=True, help="Compress its memory: smaller, slower to restore.")
@click.option("--direct-io", is_flag=True, help="Write images past the page cache (CRIU 4.3).")
@click.option("--any-process", is_flag=True, help="Take a process tree that is no vLLM engine.")
@click.option(
    "--no-canary", is_flag=True, help="Record no generation for restores to compare with."
)
@click.option("--no-quiesce", is_flag=True, help="Dump it as it is, with its KV cache.")
@click.option(
    "--inflight",
    type=click.Choice(["keep", "drain", "abort"]),
    default="keep",
    help="Requests that run are kept and go on later, waited for, or aborted.",
)
@click.option(
    "--quiesce-seconds", type=float, default=60.0, help="Seconds it may take to stand still."
)
@click.option(
    "--weights",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    help="With GPUs: weights are in the checkpoint, or read again from the model's files.",
)
@click.option(
    "--gpu-seconds",
    type=float,
    default=300.0,
    help="Seconds that a copy off a GPU, or back, may take.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, touch nothing.")
@click.option("--explain", is_flag=True, help="Print the steps and stop.")
@output.hook_options
@output.json_option
@output.progress_option
def command(
    target: int | None,
    place: Path | None,
    port: int | None,
    leave_running: bool,
    skip_in_flight: bool,
    compress: bool,
    direct_io: bool,
    any_process: bool,
    no_canary: bool,
    no_quiesce: bool,
    inflight: Literal["keep", "drain", "abort"],
    quiesce_seconds: float,
    weights: Literal["keep", "drop"],
    gpu_seconds: float,
    dry_run: bool,
    explain: bool,
    hooks: tuple[str, ...],
    hook_seconds: float,
    as_json: bool,
    progress: str,
) -> None:
    """Dump the engine that PID belongs to into a new directory, whose path is printed.

    Without a PID the engine is found by --port, or is the only one on this host. The engine ends,
    unless --leave-running. If anything fails it runs on, and nothing is left behind.
    """
    from cria.cli.results import Dumped, WouldDump
    from cria.operations.dump.steps import dump, plan
    from cria.requests import DumpRequest

    if explain:
        from cria.operations.dump.steps import DUMP_STEPS

        click.echo("\n".join(step.title for step in DUMP_STEPS))
        return
    if place is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if dry_run:
        inventory = plan(DumpRequest(target, place, port=port, any_process=any_process))
        facts = WouldDump(engine=inventory.root.pid, checkpoint=str(place))
        output.document(facts) if as_json else click.echo(
            f"engine {inventory.root.pid}: {len(inventory.processes)} processes, "
            f"{len(inventory.listeners())} listeners; it can be dumped to {place}"
        )
        return
    checkpoint = dump(
        DumpRequest(
            target,
            place,
            port=port,
            leave_running=leave_running,
            any_process=any_process,
            skip_in_flight=skip_in_flight,
            compress=compress,
            direct_io=direct_io,
            canary=not no_canary,
            inflight=None if no_quiesce else inflight,
            quiesce_seconds=quiesce_seconds,
            weights=weights,
            gpu_seconds=gpu_seconds,
            hooks=hooks,
            hook_seconds=hook_seconds,
            listener=output.listener(progress),
        )
    )
    if as_json:
        output.document(
            Dumped(
                checkpoint=str(checkpoint.path),
                bytes=checkpoint.size_bytes,
                processes=len(checkpoint.manifest.inventory.processes),
                timings=checkpoint.timings,
            )
        )
        return
    if progress != "none":
        click.echo(f"\n{output.timings_table(checkpoint.timings)}", err=True)
        click.echo(f"checkpoint of {output.size(checkpoint.size_bytes)}", err=True)
    click.echo(checkpoint.path)
