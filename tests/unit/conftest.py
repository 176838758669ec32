"""CRIU's message classes for tests of image entries; without them those tests are skipped."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from cria.criu import program
from cria.criu.messages import load
from cria.errors import CriuMissing, PycriuMissing


@pytest.fixture(scope="session")
def fdinfo() -> ModuleType:
    try:
        return load("fdinfo", program.find())
    except (CriuMissing, PycriuMissing) as error:
        if os.environ.get("CI"):
            pytest.fail(error.message)
        pytest.skip(
            f"{error.message}; run `make setup`, or set CRIA_CRIU to a CRIU with pycriu beside it"
        )
