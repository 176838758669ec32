"""Rows: checks never raise, and failed rows become one error."""

from collections.abc import Iterator

import pytest

from cria.errors import CriuMissing, EngineBlocked, PidTaken
from cria.operations.checks.diagnosis import Diagnosis
from cria.operations.checks.rows import Row, fail, ok, raise_first, rows_of, warn


def refused() -> Iterator[Row]:
    yield ok("first", "well")
    raise PermissionError(1, "Operation not permitted")


def missing() -> Iterator[Row]:
    yield from ()
    raise CriuMissing("no CRIU", details="looked\neverywhere")


def test_what_a_check_could_not_look_at_is_skipped_and_said() -> None:
    first, last = rows_of(refused)
    assert first.level == "ok"
    assert last.level == "skip" and "Operation not permitted" in last.value


def test_an_error_of_cria_becomes_a_failed_row_with_its_remedy() -> None:
    (row,) = rows_of(missing)
    assert (row.level, row.kind, row.remedy) == ("fail", CriuMissing, CriuMissing.default_remedy)
    assert row.value == "looked; everywhere"


def test_failed_rows_become_one_error_of_the_first_kind_with_all_facts() -> None:
    rows = [ok("a", "1"), warn("b", "2"), fail("c", "3", "do", PidTaken), fail("d", "4")]
    with pytest.raises(PidTaken, match="it cannot: c") as caught:
        raise_first(rows, "it cannot")
    assert caught.value.remedy == "do"
    assert caught.value.details == "c: 3\nd: 4"


def test_without_a_failed_row_nothing_is_raised() -> None:
    raise_first([ok("a", "1"), warn("b", "2")], "it cannot")


def test_the_exit_status_is_that_of_the_first_failed_row() -> None:
    rows = (warn("a", "1"), fail("b", "2", kind=PidTaken), fail("c", "3", kind=EngineBlocked))
    assert Diagnosis(about="host", target="", rows=rows).exit_status == PidTaken.exit_status
    assert Diagnosis(about="host", target="", rows=rows[:1]).exit_status == 0
