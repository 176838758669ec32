"""What CRIU is asked to write into its log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from cria.criu.client import Client
from cria.criu.options import LOG_LEVEL_SET_BY, restore_options
from cria.errors import UsageError
from cria.model.manifest import DumpOptions

DUMPED = DumpOptions(leave_running=False, network_lock="SKIP", image_io_mode=None, shell_job=False)


class AnyClient:
    def options(self, **fields: Any) -> SimpleNamespace:
        return SimpleNamespace(**fields)


def level() -> int:
    return int(restore_options(cast(Client, AnyClient()), DUMPED).log_level)


def test_it_is_told_of_errors_and_more_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(LOG_LEVEL_SET_BY, raising=False)
    assert level() == 2

    monkeypatch.setenv(LOG_LEVEL_SET_BY, "4")
    assert level() == 4


@pytest.mark.parametrize("asked", ["0", "5", "all", "-1"])
def test_a_level_that_there_is_not_is_an_error(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv(LOG_LEVEL_SET_BY, asked)

    with pytest.raises(UsageError) as caught:
        level()
    assert asked in caught.value.message
