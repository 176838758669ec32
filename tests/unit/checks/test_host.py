"""The checks of a host, where they read what a test can put in place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cria.operations.checks import criu, host
from cria.operations.checks.processes import write_rate


def test_runc_is_told_to_keep_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "OPTIONS", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/sbin/{name}")
    runc, crun = host.runtime(Path())
    assert (runc.level, crun.level) == ("warn", "warn")
    assert "tcp-established" in (runc.remedy or "")

    (tmp_path / "runc.conf").write_text("tcp-established\n")
    runc, crun = host.runtime(Path())
    assert (runc.level, crun.level) == ("ok", "ok"), "crun reads runc's file where it has none"


@pytest.mark.parametrize(
    ("scope", "level"), [("0", "ok"), ("1", "ok"), ("3", "fail"), (None, "ok")]
)
def test_yama_forbids_only_at_three(
    scope: str | None, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_setting", lambda _name: scope)
    (row,) = host.yama(Path())
    assert row.level == level


@pytest.mark.parametrize(("has_them", "level"), [(True, "ok"), (False, "warn")])
def test_a_kernel_without_time_namespaces_is_warned_of(
    has_them: bool, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "self" / "ns").mkdir(parents=True)
    if has_them:
        (tmp_path / "self" / "ns" / "time").touch()
    monkeypatch.setattr(host, "PROC", tmp_path)

    (row,) = host.clocks(Path())

    assert row.level == level


def test_old_kernels_cannot_choose_pids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "kernel_version", lambda: (5, 4))
    (row,) = host.kernel(Path())
    assert row.level == "fail"


def test_a_criu_that_is_too_old_for_the_kernel_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "criu"
    program.write_text("#!/bin/sh\necho Version: 4.1.1\n")
    program.chmod(0o755)
    monkeypatch.setenv("CRIA_CRIU", str(program))

    levels = {}
    for kernel in ((6, 15), (6, 16), (7, 0)):
        monkeypatch.setattr(criu, "kernel_version", lambda kernel=kernel: kernel)
        (row,) = criu.program(Path())
        levels[kernel] = row.level

    assert levels == {(6, 15): "ok", (6, 16): "fail", (7, 0): "fail"}


def test_without_rights_criu_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRIA_CRIU", "/bin/true")
    monkeypatch.setattr(criu, "missing_capabilities", lambda: ["CAP_SYS_ADMIN"])
    levels = [row.level for row in criu.kernel_features(Path())]
    assert levels == ["skip"]


def test_the_write_rate_leaves_nothing_behind(tmp_path: Path) -> None:
    assert write_rate(tmp_path) > 1e5
    assert list(tmp_path.iterdir()) == []
