"""Files that belong to an engine although the images do not hold them: its stores, temporary files and model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from cria.engine.command_line import option_value
from cria.model.inventory import Descriptor, Inventory, Process
from cria.system.descriptors import descriptors
from cria.system.memory import heap
from cria.system.procfs import PROC, environment, pids

TEMPORARY = ("/tmp", "/var/tmp")

# torch's FileStore: opened anew for each operation, so no process holds it (vLLM 0.32, network_utils.py).
_NAME = b"vllm_dist_"
_STORE = re.compile(_NAME + rb"[0-9a-f]{32}")
_URL = b"file://"
_LONGEST_PATH = 4096
_PIECE = 1 << 20  # what the caches of a processor hold: 200 MB of heap take 60 ms, not 500
_MODEL_OPTIONS = ("--model", "--tokenizer", "--hf-config-path", "--chat-template")


def file_stores(inventory: Inventory, proc: Path = PROC) -> tuple[str, ...]:
    """The FileStores of the engine's process groups, as the engine names them.

    Nobody holds such a file open, and its name is random. But each EngineCore keeps the url it gave to
    its workers, and that is looked for in its heap: a guess by age could take another engine's file.
    """
    if not inventory.is_engine:
        return ()
    cores = [p for p in inventory.processes if p.role.name.startswith("EngineCore")]
    found = {path for core in cores or [inventory.root] for path in _stores_in(core, proc)}
    return existing(inventory, found, proc)


def existing(inventory: Inventory, paths: Iterable[str], proc: Path = PROC) -> tuple[str, ...]:
    """Those of the engine's paths at which there is a file."""
    root = proc / str(inventory.root.pid) / "root"
    return tuple(sorted(path for path in paths if (root / path.lstrip("/")).is_file()))


def temporary_files(inventory: Inventory, proc: Path = PROC) -> tuple[str, ...]:
    """Files in temporary directories that this engine, and nobody else, holds open to write.

    Files without a name are in CRIU's images already; a log that is only appended to needs no carrying.
    One that is read too may be mapped, as the metrics are that several API servers share.
    """
    places = {*TEMPORARY, environment(inventory.root.pid, proc).get("TMPDIR", TEMPORARY[0])}
    held = {
        (each.device, each.inode): each.target
        for each in inventory.descriptors
        if _is_written(each) and any(each.target.startswith(f"{p}/") for p in places)
    }
    if not held:
        return ()
    ours = {process.pid for process in inventory.processes}
    strangers = (pid for pid in pids(proc) if pid not in ours)
    theirs = {(d.device, d.inode) for pid in strangers for d in _visible(pid, proc)}
    return tuple(sorted(path for key, path in held.items() if key not in theirs))


def model_files(inventory: Inventory, proc: Path = PROC) -> tuple[str, ...]:
    """Every file of the models that the engine's command names, as the engine sees them."""
    root = inventory.root
    inside, cwd = proc / str(root.pid) / "root", _cwd(root.pid, proc)
    found: set[str] = set()
    for name in _named(root):
        place = _hub(root, name, inside, proc) or os.path.normpath(cwd / name)
        found.update(_files(inside, place))
    return tuple(sorted(found))


def _is_written(each: Descriptor) -> bool:
    flags = each.flags or 0
    access = flags & os.O_ACCMODE
    writes = access == os.O_RDWR or (access == os.O_WRONLY and not flags & os.O_APPEND)
    return each.kind == "file" and not each.deleted and writes


def _visible(pid: int, proc: Path) -> tuple[Descriptor, ...]:
    try:
        return descriptors(pid, proc)
    except OSError:
        return ()


def _stores_in(process: Process, proc: Path) -> Iterator[str]:
    for piece, size in _heap(process.pid, proc):
        at = piece.find(_NAME, 0, size)
        while at >= 0:
            match = _STORE.match(piece, at, size)
            before = bytes(piece[max(0, at - _LONGEST_PATH) : at])
            begin = before.rfind(_URL)
            path = before[begin + len(_URL) :] if begin >= 0 else b""
            if match and path.startswith(b"/") and path.endswith(b"/") and b"\0" not in path:
                yield os.fsdecode(path + match.group())
            at = piece.find(_NAME, at + 1, size)


def _heap(pid: int, proc: Path) -> Iterator[tuple[bytearray, int]]:
    """The heap in overlapping pieces, each with its size; they come one after the other in one buffer."""
    buffer = bytearray(_PIECE + _LONGEST_PATH)
    with (proc / str(pid) / "mem").open("rb", buffering=0) as memory:
        for begin, end in heap(pid, proc):
            for offset in range(begin, end, _PIECE):
                memory.seek(offset)
                wanted = memoryview(buffer)[: min(len(buffer), end - offset)]
                size = 0
                with suppress(OSError):  # what a lazy restore has not brought yet
                    size = memory.readinto(wanted) or 0
                yield buffer, size


def _named(root: Process) -> Iterator[str]:
    """The models, and files of models, in a command line."""
    command = root.command
    if "serve" in command:
        yield from [w for w in command[command.index("serve") + 1 :][:1] if not w.startswith("-")]
    yield from (value for name in _MODEL_OPTIONS if (value := option_value(command, name)))
    try:
        drafter = json.loads(option_value(command, "--speculative-config") or "{}").get("model")
    except (ValueError, AttributeError):
        drafter = None
    yield from [drafter] if isinstance(drafter, str) else []
    if "--lora-modules" in command:
        words = command[command.index("--lora-modules") + 1 :]
        yield from (word.partition("=")[2] for word in words if "=" in word and word[0] != "-")


def _hub(root: Process, name: str, inside: Path, proc: Path) -> str | None:
    """Where the Hugging Face cache keeps a model that is named as on the hub."""
    if name.startswith((".", "/")) or name.count("/") > 1:
        return None
    known = environment(root.pid, proc)
    home = known.get("HF_HOME") or f"{known.get('HOME', '/root')}/.cache/huggingface"
    cache = known.get("HF_HUB_CACHE") or f"{home}/hub"
    model = f"{cache}/models--{name.replace('/', '--')}"
    revision = option_value(root.command, "--revision") or "main"
    try:
        commit = (inside / f"{model}/refs/{revision}".lstrip("/")).read_text().strip()
    except OSError:
        commit = revision
    found = f"{model}/snapshots/{commit}"
    return found if (inside / found.lstrip("/")).is_dir() else None


def _files(inside: Path, place: str) -> Iterable[str]:
    """The regular files at or below `place`; what is hidden is a cache or a repository."""
    there = inside / place.lstrip("/")
    if there.is_file():
        yield place
    for directory, below, names in os.walk(there):
        below[:] = [name for name in below if not name.startswith(".")]
        relative = os.path.relpath(directory, there)
        for name in names:
            if os.path.isfile(os.path.join(directory, name)):  # noqa: PTH113, PTH118
                yield os.path.normpath(f"{place}/{relative}/{name}")


def _cwd(pid: int, proc: Path) -> Path:
    try:
        return (proc / str(pid) / "cwd").readlink()
    except OSError:
        return Path("/")
