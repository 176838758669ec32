"""Compare two ways to choose free ports: probe and release, and reservation.

    python examples/port_race.py [TRIALS]

A probe binds port 0, notes the number and closes the socket. Before the number is used, another process
or the next probe may get the same one (vLLM #40443, SkyRL #1356). A reservation holds the port until the
program that was given the number has bound it. Each trial chooses N ports in both ways.
"""

from __future__ import annotations

import socket
import sys

from cria.network.reservation import reserve_any

SIZES = (8, 16, 32)


def probe() -> int:
    """Return a port that was free a moment ago, as vLLM's get_open_port does."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def probe_and_release(count: int) -> list[int]:
    return [probe() for _ in range(count)]


def reserve(count: int) -> list[int]:
    with reserve_any(count) as ports:
        return list(ports)


def collisions(count: int, trials: int) -> tuple[int, int]:
    """Return in how many trials two of `count` ports were the same, when probed and when reserved."""
    probed = reserved = 0
    for _ in range(trials):
        probed += len(set(probe_and_release(count))) < count
        reserved += len(set(reserve(count))) < count
    return probed, reserved


def main() -> int:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(f"{'ports':>5}  {'probe and release':>22}  {'reservation':>16}")
    reserved_collisions = 0
    for count in SIZES:
        probed, reserved = collisions(count, trials)
        reserved_collisions += reserved
        shares = (f"{n}/{trials} ({100 * n / trials:.1f} %)" for n in (probed, reserved))
        print("{:>5}  {:>22}  {:>16}".format(count, *shares))
    return 1 if reserved_collisions else 0


if __name__ == "__main__":
    sys.exit(main())
