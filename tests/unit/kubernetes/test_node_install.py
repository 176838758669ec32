"""The action script is installed on a node completely or not at all, and removed without a trace."""

from __future__ import annotations

import ast
import json
import os
import py_compile
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cria.errors import NodeUnsuitable, NotWritable
from cria.kubernetes.node import files
from cria.kubernetes.node import install as node
from cria.kubernetes.node.install import MODULES, SCRIPT, InstallPlan, Node, Settings

CONF = "etc/criu/runc.conf"
OURS = [
    "action-script /opt/cria/criu-action",
    "tcp-established",
    "skip-in-flight",
    "link-remap",
    "file-locks",
    "ghost-limit 512M",
    "network-lock iptables",
]
Tree = dict[str, tuple[int, bytes]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The file system of a node that has Python, CRIU and iptables, and nothing of cria's."""
    for program in ("python3", "criu", "iptables"):
        path = tmp_path / "usr/sbin" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o755)
    (tmp_path / "etc").mkdir()
    (tmp_path / "opt").mkdir()
    return tmp_path


def tree(root: Path) -> Tree:
    """Return every path with its mode and content."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(root.rglob("*"))
    }


def install(root: Path, settings: Settings | None = None, **options: Any) -> InstallPlan:
    plan = node.plan_install(Node(root=root), settings or Settings(), **options)
    plan.apply()
    return plan


def remove(root: Path) -> None:
    node.plan_removal(Node(root=root)).apply()


def options_of(root: Path, conf: str = CONF) -> list[str]:
    """Return what CRIU reads: every line that is no comment."""
    lines = (root / conf).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def cria(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cria", "kubernetes", "node", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_installed_on_a_node_that_has_nothing(root: Path) -> None:
    install(root, Settings(inflight="drain"))

    script = root / "opt/cria/criu-action"
    assert script.read_text().startswith("#!/usr/sbin/python3 -IS\n")
    assert stat.S_IMODE(script.stat().st_mode) == 0o755
    assert json.loads((root / "opt/cria/criu-action.json").read_text())["inflight"] == "drain"
    assert options_of(root) == OURS


def test_a_program_may_be_a_link_that_only_the_node_can_follow(root: Path) -> None:
    """Debian's iptables is one of its alternatives."""
    (root / "usr/sbin/iptables").unlink()
    (root / "usr/sbin/iptables").symlink_to("/etc/no-such-alternatives/iptables")

    assert str(Node(root=root).find_program("iptables")) == "/usr/sbin/iptables"


def test_a_node_without_iptables_locks_the_network_another_way(root: Path) -> None:
    (root / "usr/sbin/iptables").unlink()

    install(root)

    assert "network-lock nftables" in options_of(root)


@pytest.mark.parametrize("conf", [None, b"", b"ghost-limit 1G\n", b"# mine, and no end of line"])
def test_a_removal_restores_the_node_as_it_was(root: Path, conf: bytes | None) -> None:
    if conf is not None:
        (root / CONF).parent.mkdir()
        (root / CONF).write_bytes(conf)
        (root / CONF).chmod(0o640)
    before = tree(root)

    install(root)
    installed = tree(root)
    remove(root)

    assert installed != before
    assert tree(root) == before


def test_options_of_the_administrator_are_kept(root: Path) -> None:
    (root / CONF).parent.mkdir()
    (root / CONF).write_text("network-lock skip\ntcp-close\n")

    install(root)

    assert options_of(root) == [
        *(line for line in OURS if line not in ("tcp-established", "network-lock iptables")),
        "network-lock skip",
        "tcp-close",
    ]


def test_options_that_were_added_after_the_installation_are_kept(root: Path) -> None:
    install(root)
    with (root / CONF).open("a") as conf:
        conf.write("ghost-limit 1G\n")

    remove(root)

    assert (root / CONF).read_text() == "ghost-limit 1G\n"


def test_crun_s_own_configuration_gets_it_too(root: Path) -> None:
    (root / "etc/criu").mkdir()
    (root / "etc/criu/crun.conf").write_text("")

    install(root)
    there = options_of(root, "etc/criu/crun.conf")
    remove(root)

    assert there == OURS
    assert (root / "etc/criu/crun.conf").read_text() == ""
    assert not (root / CONF).exists()


def test_a_second_installation_changes_nothing(root: Path) -> None:
    install(root)

    assert install(root).changes == ()


def test_an_older_script_is_updated(root: Path) -> None:
    install(root)
    script = root / "opt/cria/criu-action"
    script.write_text("#!/usr/sbin/python3 -IS\nold\n")
    assert not node.status(Node(root=root)).up_to_date

    plan = install(root, Settings(seconds=5))

    assert {change.path.name for change in plan.changes} == {"criu-action", "criu-action.json"}
    assert node.status(Node(root=root)).up_to_date
    remove(root)
    assert not (root / "opt/cria").exists() and not (root / "etc/criu").exists()


def test_an_installation_without_the_newer_modules_is_updated_and_removed(root: Path) -> None:
    """Until cria 0.2 the script was one file with one module beside it."""
    before = tree(root)
    install(root)
    for name in set(MODULES) - {"criu_shared_memory.py"}:
        (root / "opt/cria" / name).unlink()
    (root / "opt/cria/criu-action").write_text("#!/usr/sbin/python3 -IS\nold\n")
    older = tree(root)
    assert not node.status(Node(root=root)).up_to_date

    remove(root)
    removed = tree(root)
    for path, (mode, content) in older.items():
        if stat.S_ISDIR(mode):
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(content)
    install(root)

    assert removed == before
    assert node.status(Node(root=root)).up_to_date
    remove(root)
    assert tree(root) == before


def test_what_python_compiles_beside_the_script_is_removed_with_it(root: Path) -> None:
    before = tree(root)
    install(root)
    for name in MODULES:
        py_compile.compile(str(root / "opt/cria" / name), doraise=True)
    assert list(root.rglob("*.pyc"))

    remove(root)

    assert tree(root) == before


@pytest.mark.parametrize("path", [SCRIPT, *MODULES.values()], ids=lambda path: path.name)
def test_the_script_and_its_modules_are_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))


def test_the_installed_script_runs_without_cria(root: Path) -> None:
    install(root)
    environment = {"CRTOOLS_SCRIPT_ACTION": "pre-dump", "CRTOOLS_INIT_PID": str(os.getpid())}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "cria-0.sock"))
        listener.listen()
        threading.Thread(target=answer_with_errors, args=(listener, 2), daemon=True).start()

        result = subprocess.run(
            [sys.executable, "-IS", root / "opt/cria/criu-action"],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip

    assert result.returncode == 1
    assert "cria: not quiesced, the dump is refused: the engine of process" in result.stderr
    assert "could not pause: a test" in result.stderr


def answer_with_errors(listener: socket.socket, count: int) -> None:
    for _ in range(count):  # the pause, and the resume that follows
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b'{"error": "a test"}')


@pytest.mark.parametrize("link", [CONF, "etc/criu", "opt", "opt/cria/criu-action"])
def test_a_symbolic_link_is_not_followed(root: Path, link: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("safe")
    place = root / link
    place.parent.mkdir(exist_ok=True, parents=True)
    if place.is_dir():
        place.rmdir()
    place.symlink_to(victim / "file" if "." in link or "action" in link else victim)
    before = tree(root)

    with pytest.raises(NotWritable, match=f"{link} is a symbolic link"):
        install(root)

    assert tree(root) == before


@pytest.mark.parametrize(
    "last",
    [*MODULES, "criu-action", "criu-action.json", "installed.json", "runc.conf"],
)
def test_an_installation_that_fails_midway_leaves_nothing(
    root: Path, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(root)
    replace = files._replace

    def full_disk(directory: int, name: str, content: bytes, executable: bool) -> None:
        if name == last:
            raise OSError(28, os.strerror(28))
        replace(directory, name, content, executable)

    monkeypatch.setattr(files, "_replace", full_disk)
    with pytest.raises(NotWritable, match=last):
        install(root)

    assert tree(root) == before


def test_a_node_without_python_is_refused(root: Path) -> None:
    (root / "usr/sbin/python3").unlink()
    before = tree(root)

    with pytest.raises(NodeUnsuitable, match="no Python"):
        install(root)
    install(root, python=Path("/opt/python/bin/python3"))

    assert before != tree(root)
    assert (root / "opt/cria/criu-action").read_text().startswith("#!/opt/python/bin/python3 -IS\n")


def test_the_command_prints_the_changes_before_it_makes_them(root: Path) -> None:
    before = tree(root)

    dry = cria("install", "--root", root, "--dry-run")
    untouched = tree(root) == before
    result = cria("install", "--root", root)

    assert untouched
    assert "+action-script /opt/cria/criu-action" in dry.stderr
    assert dry.stderr == result.stderr
    assert result.stdout.splitlines()[-1] == "/etc/criu/runc.conf"
    assert cria("remove", "--root", root, "--json").returncode == 0
    assert tree(root) == before


def test_the_command_shows_what_is_installed_and_warns_that_criu_is_missing(root: Path) -> None:
    nothing = cria("show", "--root", root)
    (root / "usr/sbin/criu").unlink()
    warned = cria("install", "--root", root, "--on-failure", "pass")
    shown = json.loads(cria("show", "--root", root, "--json").stdout)

    assert nothing.returncode == 3
    assert "no CRIU" in warned.stderr and warned.returncode == 0
    assert shown["installed"] and shown["up_to_date"] and shown["criu"] is None
    assert shown["settings"]["on_failure"] == "pass"
    assert shown["configurations"] == ["/etc/criu/runc.conf"]
