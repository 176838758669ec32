"""The figures that have to be reached, each a comparison within one run."""

from __future__ import annotations

from collections.abc import Sequence

from cria.bench.document import Clones, Floor, Spread, Way

OWN_SECONDS = 0.085


def floors(cold: Spread, ways: Sequence[Way], clones: Sequence[Clones]) -> tuple[Floor, ...]:
    """The first of the `ways` is CRIU alone, the second cria as it is without options."""
    raw, plain = ways[0], ways[1]
    compressed = next((way.bytes for way in ways if "compressed" in way.name), None)
    one, every = (clones[0].one, clones[0].all) if clones else (None, None)
    return (
        _least("restore to first token, against the cold start", 40, cold, plain.first_token),
        _most("restore, against CRIU alone", 0.4, plain.restore, raw.restore),
        _most(
            "first token after a restore, against CRIU alone",
            0.4,
            plain.first_token,
            raw.first_token,
        ),
        _most("pause of a dump, against CRIU alone", 0.4, plain.pause, raw.pause),
        _most("checkpoint on the disk, against CRIU alone", 0.6, plain.bytes, raw.bytes),
        _most("compressed, against CRIU alone", 0.15, compressed, raw.bytes),
        _seconds("cria's own time in a restore", plain.own_restore),
        _seconds("cria's own time in the pause of a dump", plain.own_pause),
        _most("all clones at once, against one", 2, every, one),
    )


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
