"""The race that started cria: many ports chosen by probing, and many held by reservation.

    python examples/port_race.py [TRIALS]

Probing binds port 0, notes the number, closes and hands the number on; between the close and the use
anybody may get it, the next probe among them (vLLM #40443, SkyRL #1356). A reservation is not let go
until the one who was told the number has bound it. Each trial takes N ports both ways.
"""

from __future__ import annotations

import socket
import sys

from cria.network.reservation import reserve_any

SIZES = (8, 16, 32)


def probe() -> int:
    """A port that was free a moment ago, as vLLM's get_open_port finds it."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def probe_and_release(count: int) -> list[int]:
    return [probe() for _ in range(count)]


def reservation(count: int) -> list[int]:
    with reserve_any(count) as ports:
        return list(ports)


def collisions(count: int, trials: int) -> tuple[int, int]:
    """In how many trials two of `count` ports were the same: probed, reserved."""
    probed = reserved = 0
    for _ in range(trials):
        probed += len(set(probe_and_release(count))) < count
        reserved += len(set(reservation(count))) < count
    return probed, reserved


def main() -> int:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(f"{'ports':>5}  {'probe and release':>22}  {'reservation':>16}")
    lost = 0
    for count in SIZES:
        probed, reserved = collisions(count, trials)
        lost += reserved
        shares = (f"{n}/{trials} ({100 * n / trials:.1f} %)" for n in (probed, reserved))
        print("{:>5}  {:>22}  {:>16}".format(count, *shares))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
