"""Run `cria demo` several times and show its figures in one table: cold start against dump and restore."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CRIA = Path(sys.executable).with_name("cria")
SECONDS = ("cold_start_s", "dump_s", "restore_s", "first_token_s")

Facts = dict[str, float]


def main() -> None:
    options = parse()
    runs = [run_demo(number, options.runs) for number in range(1, options.runs + 1)]
    if options.json:
        print(json.dumps(runs, indent=2))
    else:
        print("\n".join(table(runs)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often; the first one fills caches")
    parser.add_argument("--json", action="store_true", help="the facts of every run instead")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def run_demo(number: int, runs: int) -> Facts:
    print(f"run {number} of {runs}", file=sys.stderr)
    done = subprocess.run([CRIA, "demo", "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"cria demo ended with status {done.returncode}: {done.stdout.strip()}")
    facts: Facts = json.loads(done.stdout)
    if not facts["tokens_equal"]:
        sys.exit("the restored engine gave other tokens; its times would mean nothing")
    return facts


def table(runs: list[Facts]) -> list[str]:
    """One line per figure: median, least, most of the runs, in seconds."""
    lines = [f"{'seconds':<28}{'median':>8}{'least':>8}{'most':>8}"]
    lines += [line(label(name), [run[name] for run in runs]) for name in SECONDS]
    back = [run["restore_s"] + run["first_token_s"] for run in runs]
    lines.append(line("restore to first token", back))
    faster = statistics.median(run["cold_start_s"] / b for run, b in zip(runs, back, strict=True))
    size = statistics.median(run["checkpoint_bytes"] for run in runs)
    lines.append(f"checkpoint {size / 1e6:.0f} MB; back {faster:.1f} times as fast as a cold start")
    return lines


def label(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ")


def line(name: str, values: list[float]) -> str:
    figures = statistics.median(values), min(values), max(values)
    return f"{name:<28}" + "".join(f"{value:>8.2f}" for value in figures)


if __name__ == "__main__":
    main()
