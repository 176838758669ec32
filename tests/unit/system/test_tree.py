"""A process tree is read whole, in order, and without tripping over odd names."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cria.errors import NoSuchProcess
from cria.system import procfs as trees
from cria.system.procfs import command, environment, stat, thread_names, tree

FAMILY = """
import subprocess, sys, threading, time
child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
                         stdout=subprocess.PIPE)
child.stdout.readline()
def wait():
    open("/proc/thread-self/comm", "w").write("gloo_tcp_loop")
    print("ready", flush=True)
    time.sleep(60)
threading.Thread(target=wait, daemon=True).start()
try:
    time.sleep(60)
finally:
    child.kill()
"""


@pytest.fixture
def family() -> Iterator[int]:
    words = [sys.executable, "-c", FAMILY]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, env={**os.environ, "CRIA_ENGINE": "1"}
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        yield parent.pid
        for process in reversed(tree(parent.pid)):
            os.kill(process.pid, 9)


def test_the_root_comes_first_and_parents_before_children(family: int) -> None:
    root, child = tree(family)
    assert (root.pid, root.parent, child.parent) == (family, os.getpid(), family)


def test_a_process_is_told_with_its_command_owner_age_threads_and_memory(family: int) -> None:
    root = tree(family)[0]
    assert root.command[:2] == (sys.executable, "-c")
    assert root.uid == os.getuid()
    assert root.threads == 2
    assert abs(root.started - time.time()) < 30
    assert root.namespaces["net"] == Path("/proc/self/ns/net").stat().st_ino
    assert 1 << 20 < root.memory.anonymous < root.memory.resident < 1 << 28


def test_threads_are_known_by_name(family: int) -> None:
    assert "gloo_tcp_loop" in thread_names(family)


def test_the_environment_of_a_process_is_read(family: int) -> None:
    assert environment(family)["CRIA_ENGINE"] == "1"


def test_a_process_that_is_not_there_is_named() -> None:
    with pytest.raises(NoSuchProcess, match="999999999"):
        tree(999999999)


def test_what_has_ended_reads_as_nothing() -> None:
    assert stat(999999999) is None
    assert command(999999999) == ()
    assert thread_names(999999999) == ()
    assert environment(999999999) == {}


def test_a_name_with_blanks_and_brackets_does_not_shift_the_fields(tmp_path: Path) -> None:
    place = tmp_path / "7"
    place.mkdir()
    fields = ["S", "5", "6", "7", *["0"] * 13, "3", "0", "99"]
    (place / "stat").write_text(f"7 (a) b (c)) {' '.join(fields)}\n")
    known = stat(7, tmp_path)
    assert known is not None
    assert (known.name, known.state, known.parent, known.session) == ("a) b (c)", "S", 5, 7)
    assert (known.threads, known.start_ticks) == (3, 99)


def test_a_title_written_over_the_arguments_is_read_without_its_padding(tmp_path: Path) -> None:
    place = tmp_path / "7"
    place.mkdir()
    (place / "cmdline").write_bytes(b"VLLM::EngineCore\0\0\0\0   \0")
    assert command(7, tmp_path) == ("VLLM::EngineCore",)
    (place / "cmdline").write_bytes(b"")
    assert command(7, tmp_path) == ()


def test_a_process_that_ends_during_the_reading_is_left_out(
    family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tree(family)[1].pid
    known = trees.stat

    def gone(pid: int, proc: Path = trees.PROC) -> trees.Stat | None:
        return None if pid == child else known(pid, proc)

    monkeypatch.setattr(trees, "stat", gone)
    assert [process.pid for process in tree(family)] == [family]
