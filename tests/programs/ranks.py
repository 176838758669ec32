"""A rank of torch.distributed over Gloo that reaches barriers as the workers of an engine do.

python ranks.py STORE WORLD RANK: for each line "TOKEN SECONDS" on stdin it enters the barrier and prints the outcome.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "cria" / "agent" / "on-path"))
import torch
import torch.distributed as dist
from cria_agent.rendezvous import RanksMissing, barrier


def main() -> None:
    store, world, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    dist.new_group(list(range(world)))
    print("ready", flush=True)
    for line in sys.stdin:
        token, seconds = line.split()
        try:
            groups = barrier(token, float(seconds))
        except RanksMissing as error:
            print(f"failed: {error}", flush=True)
            continue
        total = torch.ones(1)
        dist.all_reduce(total)
        print(f"passed in {groups} groups, all reduced to {total.item():g}", flush=True)


if __name__ == "__main__":
    main()
