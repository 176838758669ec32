"""Measure one inventory: of programs with 10, 100 and 1000 sockets, and of the engines that run.

.venv/bin/python scripts/bench_inventory.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from cria.engine.inventory import discovery
from cria.engine.inventory.collect import collect_inventory

SIZES = (10, 100, 1000)
ROUNDS = 7
# A program with so many TCP listeners, each in an epoll of its own, as Gloo's loops have them.
HOLD = """
import resource, select, socket, sys
count = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = []
for _ in range(count):
    listener, epoll = socket.create_server(("127.0.0.1", 0)), select.epoll()
    epoll.register(listener)
    held += [listener, epoll]
print("ready", flush=True)
sys.stdin.read()
"""


def main() -> None:
    print(f"{'what':<28}{'sockets':>8}{'median ms':>11}{'least ms':>10}")
    for count in SIZES:
        argv = [sys.executable, "-c", HOLD, str(count)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdout.readline()
            report("a program", process.pid)
            process.stdin.close()
    for root in discovery.find_engines():
        report(f"engine {root}", root)


def report(what: str, pid: int) -> None:
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        inventory = collect_inventory(pid, any_process=True)
        seconds.append(time.perf_counter() - begin)
    count = len(inventory.sockets) + len(inventory.unix_sockets)
    median, least = statistics.median(seconds) * 1000, min(seconds) * 1000
    print(f"{what:<28}{count:>8}{median:>11.1f}{least:>10.1f}")


if __name__ == "__main__":
    main()
