"""Each kind of error has its own code and exit status, in the range of its class."""

from pathlib import Path

from cria.errors import CriaError, EngineBlocked, all_kinds


def test_codes_and_exit_statuses_are_unique() -> None:
    kinds = all_kinds()

    assert len({kind.code for kind in kinds}) == len(kinds)
    assert len({kind.exit_status for kind in kinds}) == len(kinds)


def test_exit_statuses_stay_clear_of_bug_warning_and_signals() -> None:
    for kind in all_kinds():
        assert kind.exit_status == 2 or 10 <= kind.exit_status < 70, kind


def test_every_kind_says_what_it_is_for() -> None:
    assert all((kind.__doc__ or "").endswith(".") for kind in all_kinds())


def test_an_error_as_json_has_all_its_parts() -> None:
    error = EngineBlocked("cannot dump 7", details="fd 3", remedy="close it", log="/l")

    assert error.to_json() == {
        "code": "engine-blocked",
        "message": "cannot dump 7",
        "details": "fd 3",
        "remedy": "close it",
        "docs": "docs/reference/blockers.md",
        "log": "/l",
    }


def test_a_bug_has_exit_status_one() -> None:
    assert CriaError("x").exit_status == 1


def test_the_page_each_error_points_to_is_there() -> None:
    root = Path(__file__).parents[2]

    for kind in [CriaError, *all_kinds()]:
        page, _, anchor = (kind("x").docs or "").partition("#")
        assert (root / page).is_file(), page
        assert not anchor or f"## {anchor}" in (root / page).read_text(), kind
