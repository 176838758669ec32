"""Sizes, ages and durations are written in one way."""

from __future__ import annotations

import pytest

from cria.model.units import age, duration, size


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"), (5 << 20, "5 MiB"), (3 << 29, "1.50 GiB")],
)
def test_a_size_is_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.064, "0.06 s"), (9.5, "9.50 s"), (61.1, "61.1 s")]
)
def test_a_duration_has_about_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3720, "1h 2m"), (90061, "1d 1h")],
)
def test_an_age_is_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert age(seconds) == text
