"""What CRIU is asked to write into its log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from cria.criu.client import Client
from cria.criu.options import LOG_LEVEL_VARIABLE, restore_options
from cria.errors import UsageError
from cria.model.manifest import DumpOptions

DUMPED = DumpOptions(leave_running=False, network_lock="SKIP", image_io_mode=None, shell_job=False)


class FakeClient:
    def options(self, **fields: object) -> SimpleNamespace:
        return SimpleNamespace(**fields)


def level() -> int:
    return int(restore_options(cast(Client, FakeClient()), DUMPED).log_level)


def test_criu_logs_errors_and_warnings_and_more_where_the_user_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(LOG_LEVEL_VARIABLE, raising=False)
    assert level() == 2

    monkeypatch.setenv(LOG_LEVEL_VARIABLE, "4")
    assert level() == 4


@pytest.mark.parametrize("asked", ["0", "5", "all", "-1"])
def test_a_level_that_does_not_exist_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv(LOG_LEVEL_VARIABLE, asked)

    with pytest.raises(UsageError) as caught:
        level()
    assert asked in caught.value.message
