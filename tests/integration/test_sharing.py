"""Clones that share memory: what allocators do to it afterwards changes nothing but who holds it."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cria
from cria.engine.launch.launcher import Launched
from cria.errors import CannotShare, CriaError, NotWritable, PathTaken
from cria.memory.shared import directory
from cria.system.procfs import tree

from .conftest import end

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("shm_is_left_clean")]

MIB = 1 << 20
Share = Callable[[cria.Checkpoint], tuple[cria.Engine, int]]


def tell(port: int, what: str) -> dict[str, bool]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(what.encode() + b"\n")
        return json.loads(connection.makefile().readline())


def is_same(port: int) -> bool:
    return all(tell(port, "same").values())


@pytest.fixture
def original(
    start: Callable[..., Launched], free_port: Callable[[], int], tmp_path: Path
) -> tuple[Launched, int, cria.Checkpoint]:
    """A program with memory of all kinds, which runs on after its dump and does nothing."""
    port = free_port()
    launched = start("memory_habits.py", port)
    checkpoint = cria.dump(launched.pid, tmp_path / "cp", any_process=True, leave_running=True)
    return launched, port, checkpoint


@pytest.fixture
def share(
    original: tuple[Launched, int, cria.Checkpoint],
    free_port: Callable[[], int],
    ended_after: list[int],
) -> Share:
    """Restore a clone that shares; returns it and its port."""

    def restore(checkpoint: cria.Checkpoint) -> tuple[cria.Engine, int]:
        new = free_port()
        engine = checkpoint.restore([f"{original[1]}={new}"], share_memory=True)
        ended_after.append(engine.pid)
        return engine, new

    return restore


def private_memory(pid: int) -> dict[tuple[int, int], str]:
    """Digests of what a process has in private writable memory that is not its stack, by its addresses.

    Where two mappings meet is the kernel's affair: it may make them one at a restore.
    """
    areas: list[list[int]] = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        begin, end = (int(x, 16) for x in line.split()[0].split("-"))
        if " rw-p " not in line or "[stack]" in line:
            continue
        if areas and areas[-1][1] == begin:
            areas[-1][1] = end
        else:
            areas.append([begin, end])
    found = {}
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for begin, end in areas:
            if end - begin >= MIB // 4:
                memory.seek(begin)
                found[begin, end] = hashlib.blake2b(memory.read(end - begin)).hexdigest()
    return found


def test_every_byte_is_as_in_the_process_that_was_dumped(
    original: tuple[Launched, int, cria.Checkpoint], share: Share
) -> None:
    launched, _, checkpoint = original
    engine, _ = share(checkpoint)

    for clone, first in zip(tree(engine.pid), tree(launched.pid), strict=True):
        assert private_memory(clone.pid) == private_memory(first.pid)


def test_what_is_shared_is_told_and_is_not_copied(
    original: tuple[Launched, int, cria.Checkpoint], share: Share
) -> None:
    _, _, checkpoint = original
    engine, _ = share(checkpoint)

    told = engine.shared_memory
    assert told is not None
    assert told.made
    assert told.shared_bytes > 100 * MIB > 10 * told.copied_bytes
    assert told.shared_bytes + told.copied_bytes == checkpoint.memory_bytes()
    anonymous = Path(f"/proc/{engine.pid}/smaps_rollup").read_text()
    assert int(anonymous.split("Anonymous:")[1].split()[0]) * 1024 < 20 * MIB
    assert checkpoint.verify() > 0


def test_a_clone_does_to_its_memory_what_it_likes_and_no_other_notices(
    original: tuple[Launched, int, cria.Checkpoint], share: Share
) -> None:
    _, port, checkpoint = original
    _, first = share(checkpoint)
    _, second = share(checkpoint)

    once, again = tell(first, "habits"), tell(first, "habits")

    assert all(once.values()), once
    assert all(again.values()), again
    assert is_same(second)
    assert is_same(port)
    assert all(tell(second, "habits").values())
    third, port_of_third = share(checkpoint)
    assert third.shared_memory is not None and not third.shared_memory.made
    assert is_same(port_of_third)


def test_the_checkpoint_of_a_clone_that_shares_holds_all_it_needs(
    original: tuple[Launched, int, cria.Checkpoint],
    share: Share,
    tmp_path: Path,
    ended_after: list[int],
    free_port: Callable[[], int],
) -> None:
    _, _, checkpoint = original
    engine, new = share(checkpoint)
    assert all(tell(new, "habits").values())

    second = cria.dump(engine.pid, tmp_path / "second", any_process=True)
    shutil.rmtree(directory.default_directory(checkpoint.path))
    shutil.rmtree(checkpoint.path)

    third = free_port()
    plain = second.restore([f"{new}={third}"])
    ended_after.append(plain.pid)
    assert is_same(third)
    assert all(tell(third, "habits").values())
    names = {file.path for file in second.manifest.fingerprints}
    assert not any(directory.is_shared_file(name) for name in names)
    assert all(tell(share_again(second, new, ended_after, free_port), "habits").values())


def share_again(
    checkpoint: cria.Checkpoint, old: int, ended_after: list[int], free_port: Callable[[], int]
) -> int:
    new = free_port()
    ended_after.append(checkpoint.restore([f"{old}={new}"], share_memory=True).pid)
    return new


def test_four_restores_at_once_make_it_once(
    original: tuple[Launched, int, cria.Checkpoint], share: Share
) -> None:
    _, _, checkpoint = original
    with ThreadPoolExecutor(4) as pool:
        clones = list(pool.map(lambda _: share(checkpoint), range(4)))

    told = [engine.shared_memory for engine, _ in clones]
    assert [memory is not None and memory.made for memory in told].count(True) == 1
    assert all(is_same(port) for _, port in clones)


def test_a_fleet_shares(
    original: tuple[Launched, int, cria.Checkpoint], ended_after: list[int]
) -> None:
    _, _, checkpoint = original
    fleet = checkpoint.restore(replicas=3, share_memory=True)
    ended_after.extend(engine.pid for engine in fleet)

    pss = [Path(f"/proc/{e.pid}/smaps_rollup").read_text().split("Pss:")[1] for e in fleet]
    each = sum(int(text.split()[0]) for text in pss) * 1024
    assert each < 1.5 * checkpoint.memory_bytes()


def test_files_that_were_changed_are_made_anew(
    original: tuple[Launched, int, cria.Checkpoint], share: Share
) -> None:
    _, _, checkpoint = original
    engine, _ = share(checkpoint)
    end(engine.pid)
    file, *_ = directory.default_directory(checkpoint.path).glob("*/*.mem")
    with file.open("r+b") as opened:
        opened.seek(0, 0)
        opened.write(b"changed")

    again, port = share(checkpoint)

    assert again.shared_memory is not None
    assert again.shared_memory.made
    assert is_same(port)


def test_files_in_use_are_not_removed_and_others_are(
    original: tuple[Launched, int, cria.Checkpoint], share: Share
) -> None:
    _, _, checkpoint = original
    engine, _ = share(checkpoint)
    there = directory.default_directory(checkpoint.path)

    with pytest.raises(PathTaken) as refused:
        directory.remove(there)

    assert str(engine.pid) in str(refused.value.message)
    end(engine.pid)
    assert directory.remove(there) > 100 * MIB
    assert not there.exists()


def test_a_clone_whose_files_are_gone_runs_on_but_cannot_be_dumped(
    original: tuple[Launched, int, cria.Checkpoint], share: Share, tmp_path: Path
) -> None:
    _, _, checkpoint = original
    engine, port = share(checkpoint)
    shutil.rmtree(directory.default_directory(checkpoint.path))

    with pytest.raises(CriaError):
        cria.dump(engine.pid, tmp_path / "second", any_process=True)

    assert all(tell(port, "habits").values())
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("kind", ["link", "open to others", "file"])
def test_a_place_that_is_not_private_is_refused(
    original: tuple[Launched, int, cria.Checkpoint], tmp_path: Path, kind: str
) -> None:
    _, _, checkpoint = original
    there, other = tmp_path / "there", tmp_path / "other"
    other.mkdir(mode=0o700)
    if kind == "link":
        there.symlink_to(other)
    elif kind == "file":
        there.touch()
    else:
        there.mkdir(mode=0o755)

    with pytest.raises((CannotShare, NotWritable)):
        checkpoint.restore(share_in=there)

    assert not list(other.iterdir())


def test_a_place_that_clones_do_not_see_is_refused(
    original: tuple[Launched, int, cria.Checkpoint],
) -> None:
    _, _, checkpoint = original
    with pytest.raises(CannotShare) as refused:
        checkpoint.restore(share_in="/dev/shm/cria-test-sharing")

    assert not Path("/dev/shm/cria-test-sharing").exists()
    assert "/dev/shm of their own" in str(refused.value.details)
