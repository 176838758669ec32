"""`cria demo --json` prints what it measured."""

import pytest

from .conftest import answer

pytestmark = [pytest.mark.root, pytest.mark.engine]


def test_the_restored_engine_of_the_demo_generates_the_same_tokens() -> None:
    facts = answer("demo", "--progress", "none")

    assert facts["tokens_equal"] is True
    assert facts["ports_moved"] >= 2
    assert facts["checkpoint_bytes"] > 1 << 30
    assert facts["restore_s"] <= facts["first_token_s"] < facts["cold_start_s"]
    assert facts["dump_s"] > 0
    assert facts["url"] != facts["old_url"]
