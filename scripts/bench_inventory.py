"""Time an inventory of programs with 10, 100 and 1000 sockets, and of the engines on this host.

.venv/bin/python scripts/bench_inventory.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from cria.engine.inventory import discovery
from cria.engine.inventory.collect import collect_inventory

SOCKETS = (10, 100, 1000)
ROUNDS = 7
# A program with that many TCP listeners, each in an epoll of its own, as in Gloo's event loops.
PROGRAM = """
import resource, select, socket, sys
count = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
open_files = []
for _ in range(count):
    listener, epoll = socket.create_server(("127.0.0.1", 0)), select.epoll()
    epoll.register(listener)
    open_files += [listener, epoll]
print("ready", flush=True)
sys.stdin.read()
"""


def main() -> None:
    print(f"{'what':<28}{'sockets':>8}{'median ms':>11}{'least ms':>10}")
    for count in SOCKETS:
        command = [sys.executable, "-c", PROGRAM, str(count)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdout.readline()
            report("a program", process.pid)
            process.stdin.close()
    for root in discovery.find_engines():
        report(f"engine {root}", root)


def report(name: str, pid: int) -> None:
    """Print how long an inventory of the process tree of `pid` takes."""
    milliseconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        inventory = collect_inventory(pid, any_process=True)
        milliseconds.append((time.perf_counter() - start) * 1000)
    count = len(inventory.sockets) + len(inventory.unix_sockets)
    median, least = statistics.median(milliseconds), min(milliseconds)
    print(f"{name:<28}{count:>8}{median:>11.1f}{least:>10.1f}")


if __name__ == "__main__":
    main()
