"""CRIU's message classes for tests of image entries; without them those tests are skipped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from cria.errors import PycriuMissing
from cria.images.bindings import load


def criu_binary() -> Path | None:
    found = os.environ.get("CRIA_CRIU") or shutil.which("criu")
    return Path(found) if found else None


@pytest.fixture(scope="session")
def fdinfo() -> ModuleType:
    try:
        return load("fdinfo", criu_binary())
    except PycriuMissing as error:
        pytest.skip(f"{error.message}; set CRIA_CRIU to a CRIU that has it beside it")
