"""Draw the figures of a benchmark as an SVG: no library is needed, and it suits light and dark pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

import msgspec

from benchmarks.document import Bench, Measured, Spread
from cria.model.units import duration, size

WIDTH, NAME_WIDTH, FIGURE_WIDTH = 720, 170, 120
BAR_HEIGHT, BAR_GAP, TITLE_HEIGHT = 18, 8, 34
COLOURS = ("#6e7781", "#bf8700", "#0969da", "#1a7f37", "#8250df", "#bc4c00")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}"
    ".head{font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}}"
)


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A bar of a chart; `figure` is the text beside it."""

    name: str
    value: float
    figure: str
    colour: str


def draw(bench: Bench) -> str:
    """Return an SVG document of what was measured of the first engine."""
    charts, top = [], 0
    for title, bars in _charts(bench.engines[0]):
        if bars:
            charts.append(_chart(title, bars, top))
            top += TITLE_HEIGHT + len(bars) * (BAR_HEIGHT + BAR_GAP) + BAR_GAP
    lines = "\n".join(charts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img" '
        f'aria-label="cold start, CRIU alone and cria compared">\n<style>{STYLE}</style>\n{lines}\n</svg>\n'
    )


def _charts(measured: Measured) -> Iterator[tuple[str, list[Bar]]]:
    ways = measured.ways
    first_tokens = [("cold start", measured.cold), *((way.name, way.first_token) for way in ways)]
    yield "seconds until the first token", _bars(first_tokens, COLOURS, _seconds)
    # A way has the same colour in each chart; the first colour is the cold start's.
    pauses = [(way.name, way.pause) for way in ways]
    yield (
        "seconds that a client waits while the engine is dumped",
        _bars(pauses, COLOURS[1:], _seconds),
    )
    sizes = [(way.name, way.bytes) for way in ways]
    yield "checkpoint on the disk", _bars(sizes, COLOURS[1:], _size)


def _bars(
    figures: Sequence[tuple[str, Spread | None]],
    colours: Sequence[str],
    show: Callable[[Spread], str],
) -> list[Bar]:
    return [
        Bar(
            name=name,
            value=spread.median,
            figure=show(spread),
            colour=colours[index % len(colours)],
        )
        for index, (name, spread) in enumerate(figures)
        if spread is not None
    ]


def _chart(title: str, bars: Sequence[Bar], top: int) -> str:
    largest = max(bar.value for bar in bars) or 1.0
    longest = WIDTH - NAME_WIDTH - FIGURE_WIDTH
    lines = [f'<text class="head" x="0" y="{top + 20}">{escape(title)}</text>']
    for index, bar in enumerate(bars):
        y = top + TITLE_HEIGHT + index * (BAR_HEIGHT + BAR_GAP)
        length = max(2.0, bar.value / largest * longest)
        lines += [
            f'<text x="{NAME_WIDTH - 8}" y="{y + 14}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{NAME_WIDTH}" y="{y}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="2" '
            f'fill="{bar.colour}"/>',
            f'<text x="{NAME_WIDTH + length + 6:.1f}" y="{y + 14}">{escape(bar.figure)}</text>',
        ]
    return "\n".join(lines)


def _seconds(spread: Spread) -> str:
    return duration(spread.median)


def _size(spread: Spread) -> str:
    return size(int(spread.median))
