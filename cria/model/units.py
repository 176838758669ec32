"""Sizes, ages and durations as people read them."""

from __future__ import annotations


def size(count: int) -> str:
    """Return a number of bytes in the largest unit that fits it."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"


def age(seconds: float) -> str:
    """Return an age in its two largest units."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds}s" if minutes else f"{seconds}s"


def duration(seconds: float) -> str:
    """Return how long something took, with about three digits."""
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
