"""Compressed memory is written to the addresses that it had."""

from __future__ import annotations

from cria.criu.images.memory import PAGE, PRESENT, Run
from cria.memory.compressed import TargetRanges

START = 0x7F0000000000


def test_content_that_crosses_the_end_of_a_run_has_two_ranges() -> None:
    ranges = TargetRanges(
        [
            Run(start=START, pages=1, flags=PRESENT, offset=0),
            Run(start=START + 5 * PAGE, pages=2, flags=PRESENT, offset=PAGE),
        ]
    )

    assert ranges.of(100, PAGE) == [(START + 100, PAGE - 100), (START + 5 * PAGE, 100)]
