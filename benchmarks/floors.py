"""The figures that have to be reached, each a comparison within one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from benchmarks.document import Clones, Floor, Spread, Way

OWN_SECONDS = 0.085


def floors(cold: Spread | None, ways: Sequence[Way], clones: Sequence[Clones]) -> tuple[Floor, ...]:
    """The first of the `ways` is CRIU alone, the second cria as it is without options.

    A restore is as fast as the fastest way that cria offers; each floor names it.
    """
    raw, plain = ways[0], ways[1]
    best = min(ways[1:], key=lambda way: way.first_token.median if way.first_token else inf)
    compressed = next((way.bytes for way in ways if "compressed" in way.name), None)
    return (
        _least(f"{best.name}: to first token, against the cold start", 40, cold, best.first_token),
        _most(f"{best.name}: restore, against CRIU alone", 0.4, best.restore, raw.restore),
        _most(
            f"{best.name}: to first token, against CRIU alone",
            0.4,
            best.first_token,
            raw.first_token,
        ),
        _seconds(f"{best.name}: its own time in a restore", best.own_restore),
        _most("pause of a dump, against CRIU alone", 0.4, plain.pause, raw.pause),
        _seconds("its own time in the pause of a dump", plain.own_pause),
        _most("checkpoint on the disk, against CRIU alone", 0.6, plain.bytes, raw.bytes),
        _most("compressed, against CRIU alone", 0.15, compressed, raw.bytes),
        *(floor for each in clones for floor in _of_clones(each)),
    )


def _of_clones(clones: Clones) -> Iterator[Floor]:
    many = f"{clones.name}: {clones.count} clones at once"
    yield _most(f"{many}, seconds against one", 2, clones.all, clones.one)
    if "shared" in clones.name:
        yield _most(f"{many}, memory against one", 2, clones.all_bytes, clones.one_bytes)


def _least(what: str, limit: float, over: Spread | None, under: Spread | None) -> Floor:
    return Floor(what=what, limit=limit, at_least=True, unit="x", measured=_ratio(over, under))


def _most(what: str, limit: float, over: Spread | None, under: Spread | None) -> Floor:
    return Floor(what=what, limit=limit, at_least=False, unit="x", measured=_ratio(over, under))


def _seconds(what: str, found: Spread | None) -> Floor:
    measured = found.median if found else None
    return Floor(what=what, limit=OWN_SECONDS, at_least=False, unit="s", measured=measured)


def _ratio(over: Spread | None, under: Spread | None) -> float | None:
    if over is None or under is None or not under.median:
        return None
    return over.median / under.median
