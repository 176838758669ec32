"""The figures of a benchmark as a picture: an SVG that needs no library and reads on light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

import msgspec

from benchmarks.document import Bench, Measured, Spread

WIDTH, LABEL, FIGURE, BAR, GAP, HEAD = 720, 170, 120, 18, 8, 34
COLOURS = ("#6e7781", "#bf8700", "#0969da", "#1a7f37", "#8250df", "#bc4c00")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}"
    ".head{font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)


class Bar(msgspec.Struct, frozen=True):
    """A bar: its name, its value, the words beside it, its colour."""

    name: str
    value: float
    words: str
    colour: str


def draw(bench: Bench) -> str:
    """The first engine of a benchmark as an SVG document."""
    parts, top = [], 0
    for title, bars in _charts(bench.engines[0]):
        if bars:
            parts.append(_chart(title, bars, top))
            top += HEAD + len(bars) * (BAR + GAP) + GAP
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img" '
        f'aria-label="cold start, CRIU alone and cria compared">\n<style>{STYLE}</style>\n{lines}\n</svg>\n'
    )


def _charts(measured: Measured) -> Iterator[tuple[str, list[Bar]]]:
    ways = measured.ways
    cold = ("cold start", measured.cold)
    yield (
        "seconds until the first token",
        _bars([cold, *((way.name, way.first_token) for way in ways)], 0, _seconds),
    )
    yield (
        "seconds that a client waits while the engine is dumped",
        _bars([(way.name, way.pause) for way in ways], 1, _seconds),
    )
    yield (
        "checkpoint on the disk",
        _bars([(way.name, way.bytes) for way in ways], 1, _size),
    )


def _bars(
    values: Sequence[tuple[str, Spread | None]], first_colour: int, words: Callable[[Spread], str]
) -> list[Bar]:
    return [
        Bar(name, found.median, words(found), COLOURS[(first_colour + place) % len(COLOURS)])
        for place, (name, found) in enumerate(values)
        if found is not None
    ]


def _chart(title: str, bars: Sequence[Bar], top: int) -> str:
    most = max(bar.value for bar in bars) or 1.0
    room = WIDTH - LABEL - FIGURE
    lines = [f'<text class="head" x="0" y="{top + 20}">{escape(title)}</text>']
    for place, bar in enumerate(bars):
        y = top + HEAD + place * (BAR + GAP)
        length = max(2.0, bar.value / most * room)
        lines += [
            f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{bar.colour}"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{y + 14}">{escape(bar.words)}</text>',
        ]
    return "\n".join(lines)


def _seconds(spread: Spread) -> str:
    return f"{spread.median:.2f} s" if spread.median < 10 else f"{spread.median:.0f} s"


def _size(spread: Spread) -> str:
    from cria.cli.output import size

    return size(int(spread.median))
