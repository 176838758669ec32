"""The figures that cria has to reach, each a comparison within one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from benchmarks.document import Clones, Floor, Spread, Way

OWN_SECONDS = 0.085


def floors(cold: Spread | None, ways: Sequence[Way], clones: Sequence[Clones]) -> tuple[Floor, ...]:
    """Compare what was measured with what has to be reached.

    The first of the `ways` is CRIU alone, the second cria without options. A restore is measured by
    the fastest way that cria offers, which the floor names.
    """
    raw, plain = ways[0], ways[1]
    best = min(ways[1:], key=lambda way: way.first_token.median if way.first_token else inf)
    compressed = next((way.bytes for way in ways if "compressed" in way.name), None)
    return (
        _at_least(
            f"{best.name}: to first token, against the cold start", 40, cold, best.first_token
        ),
        _at_most(f"{best.name}: restore, against CRIU alone", 0.4, best.restore, raw.restore),
        _at_most(
            f"{best.name}: to first token, against CRIU alone",
            0.4,
            best.first_token,
            raw.first_token,
        ),
        _own_time(f"{best.name}: its own time in a restore", best.own_restore),
        _at_most("pause of a dump, against CRIU alone", 0.4, plain.pause, raw.pause),
        _own_time("its own time in the pause of a dump", plain.own_pause),
        _at_most("checkpoint on the disk, against CRIU alone", 0.6, plain.bytes, raw.bytes),
        _at_most("compressed, against CRIU alone", 0.15, compressed, raw.bytes),
        *(floor for several in clones for floor in _clone_floors(several)),
    )


def _clone_floors(clones: Clones) -> Iterator[Floor]:
    name = f"{clones.name}: {clones.count} clones at once"
    yield _at_most(f"{name}, seconds against one", 2, clones.all, clones.one)
    if "shared" in clones.name:
        yield _at_most(f"{name}, memory against one", 2, clones.all_bytes, clones.one_bytes)


def _at_least(
    what: str, limit: float, numerator: Spread | None, denominator: Spread | None
) -> Floor:
    ratio = _ratio(numerator, denominator)
    return Floor(what=what, limit=limit, at_least=True, unit="x", measured=ratio)


def _at_most(
    what: str, limit: float, numerator: Spread | None, denominator: Spread | None
) -> Floor:
    ratio = _ratio(numerator, denominator)
    return Floor(what=what, limit=limit, at_least=False, unit="x", measured=ratio)


def _own_time(what: str, seconds: Spread | None) -> Floor:
    measured = seconds.median if seconds else None
    return Floor(what=what, limit=OWN_SECONDS, at_least=False, unit="s", measured=measured)


def _ratio(numerator: Spread | None, denominator: Spread | None) -> float | None:
    if numerator is None or denominator is None or not denominator.median:
        return None
    return numerator.median / denominator.median
