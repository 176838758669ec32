"""Engine files that CRIU's images do not hold: the stores of torch, temporary files, the model."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from cria.engine.command_line import option_value
from cria.model.inventory import Descriptor, Inventory, Process
from cria.system.descriptors import descriptors
from cria.system.memory import heap
from cria.system.procfs import PROC, environment, pids

TEMPORARY_DIRECTORIES = ("/tmp", "/var/tmp")
# torch opens its FileStore for each operation, so no process holds it (vLLM 0.32, network_utils.py).
_STORE_NAME = b"vllm_dist_"
_STORE = re.compile(_STORE_NAME + rb"[0-9a-f]{32}")
_STORE_URL = b"file://"
_LONGEST_PATH = 4096
_CHUNK = 1 << 20  # fits into the caches of a processor: 200 MB of heap take 60 ms, not 500
_MODEL_OPTIONS = ("--model", "--tokenizer", "--hf-config-path", "--chat-template")


def file_stores(inventory: Inventory, proc: Path = PROC) -> tuple[str, ...]:
    """Return the paths of the FileStores of the engine's process groups, as the engine sees them.

    They are found in the heap of each EngineCore, which keeps the URL that it gave to its workers: no process
    holds such a file open, and its name is random. A guess by age could take, and later remove, the file of
    another engine.
    """
    if not inventory.is_engine:
        return ()
    cores = [p for p in inventory.processes if p.role.name.startswith("EngineCore")]
    paths = {path for core in cores or [inventory.root] for path in _stores_in(core, proc)}
    return existing(inventory, paths, proc)


def existing(inventory: Inventory, paths: Iterable[str], proc: Path = PROC) -> tuple[str, ...]:
    """Return those of `paths`, as the engine sees them, at which one of its users has a store of torch.

    The engine names its stores itself, so another file by such a name is not believed to be one.
    """
    root = proc / str(inventory.root.pid) / "root"
    uids = {process.uid for process in inventory.processes}

    def is_store(path: str) -> bool:
        if not path.startswith("/") or not _STORE.fullmatch(os.fsencode(path.rpartition("/")[2])):
            return False
        try:
            status = (root / path.lstrip("/")).lstat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_uid in uids

    return tuple(sorted(filter(is_store, paths)))


def temporary_files(inventory: Inventory, proc: Path = PROC) -> tuple[str, ...]:
    """Return the files in temporary directories that this engine, and no other process, holds open to write.

    Not those without a name, which are in CRIU's images, and no log that is only appended to. A file that is
    opened to read and write may be mapped, as the metrics are that several API servers share.
    """
    tmpdir = environment(inventory.root.pid, proc).get("TMPDIR", TEMPORARY_DIRECTORIES[0])
    prefixes = tuple(f"{directory}/" for directory in (*TEMPORARY_DIRECTORIES, tmpdir))
    held = {
        (descriptor.device, descriptor.inode): descriptor.target
        for descriptor in inventory.descriptors
        if _is_written(descriptor) and descriptor.target.startswith(prefixes)
    }
    if not held:
        return ()
    own_pids = {process.pid for process in inventory.processes}
    other_pids = (pid for pid in pids(proc) if pid not in own_pids)
    held_by_others = {(d.device, d.inode) for pid in other_pids for d in _visible(pid, proc)}
    return tuple(sorted(path for key, path in held.items() if key not in held_by_others))


def model_files(inventory: Inventory, proc: Path = PROC) -> tuple[str, ...]:
    """Return every file of the models that the engine's command names, as the engine sees them."""
    root = inventory.root
    inside, cwd = proc / str(root.pid) / "root", _cwd(root.pid, proc)
    paths: set[str] = set()
    for name in _models_in(root.command):
        path = _hub_snapshot(root, name, inside, proc) or os.path.normpath(cwd / name)
        paths.update(_files_below(inside, path))
    return tuple(sorted(paths))


def _is_written(descriptor: Descriptor) -> bool:
    flags = descriptor.flags or 0
    access = flags & os.O_ACCMODE
    writes = access == os.O_RDWR or (access == os.O_WRONLY and not flags & os.O_APPEND)
    return descriptor.kind == "file" and not descriptor.deleted and writes


def _visible(pid: int, proc: Path) -> tuple[Descriptor, ...]:
    try:
        return descriptors(pid, proc)
    except OSError:
        return ()


def _stores_in(process: Process, proc: Path) -> Iterator[str]:
    for chunk, size in _heap_chunks(process.pid, proc):
        at = chunk.find(_STORE_NAME, 0, size)
        while at >= 0:
            match = _STORE.match(chunk, at, size)
            before = bytes(chunk[max(0, at - _LONGEST_PATH) : at])
            begin = before.rfind(_STORE_URL)
            path = before[begin + len(_STORE_URL) :] if begin >= 0 else b""
            if match and path.startswith(b"/") and path.endswith(b"/") and b"\0" not in path:
                yield os.fsdecode(path + match.group())
            at = chunk.find(_STORE_NAME, at + 1, size)


def _heap_chunks(pid: int, proc: Path) -> Iterator[tuple[bytearray, int]]:
    """Yield the heap in overlapping chunks, each with its size, in one buffer that the next chunk overwrites."""
    buffer = bytearray(_CHUNK + _LONGEST_PATH)
    with (proc / str(pid) / "mem").open("rb", buffering=0) as memory:
        for begin, end in heap(pid, proc):
            for offset in range(begin, end, _CHUNK):
                memory.seek(offset)
                view = memoryview(buffer)[: min(len(buffer), end - offset)]
                size = 0
                with suppress(OSError):  # memory that a lazy restore has not brought yet
                    size = memory.readinto(view) or 0
                yield buffer, size


def _models_in(command: tuple[str, ...]) -> Iterator[str]:
    """Yield the models, and files of models, that a command names."""
    if "serve" in command:
        yield from [w for w in command[command.index("serve") + 1 :][:1] if not w.startswith("-")]
    yield from (value for name in _MODEL_OPTIONS if (value := option_value(command, name)))
    try:
        drafter = json.loads(option_value(command, "--speculative-config") or "{}").get("model")
    except (ValueError, AttributeError):
        drafter = None
    yield from [drafter] if isinstance(drafter, str) else []
    if "--lora-modules" in command:
        modules = command[command.index("--lora-modules") + 1 :]
        yield from (word.partition("=")[2] for word in modules if "=" in word and word[0] != "-")


def _hub_snapshot(root: Process, name: str, inside: Path, proc: Path) -> str | None:
    """Return the directory in the Hugging Face cache of a model that is named as on the hub."""
    if name.startswith((".", "/")) or name.count("/") > 1:
        return None
    variables = environment(root.pid, proc)
    home = variables.get("HF_HOME") or f"{variables.get('HOME', '/root')}/.cache/huggingface"
    cache = variables.get("HF_HUB_CACHE") or f"{home}/hub"
    model = f"{cache}/models--{name.replace('/', '--')}"
    revision = option_value(root.command, "--revision") or "main"
    try:
        commit = (inside / f"{model}/refs/{revision}".lstrip("/")).read_text().strip()
    except OSError:
        commit = revision
    snapshot = f"{model}/snapshots/{commit}"
    return snapshot if (inside / snapshot.lstrip("/")).is_dir() else None


def _files_below(inside: Path, path: str) -> Iterator[str]:
    """Yield the regular files at or below `path`; hidden directories are caches or repositories."""
    top = inside / path.lstrip("/")
    if top.is_file():
        yield path
    for directory, below, names in os.walk(top):
        below[:] = [name for name in below if not name.startswith(".")]
        relative = os.path.relpath(directory, top)
        for name in names:
            if os.path.isfile(os.path.join(directory, name)):  # noqa: PTH113, PTH118
                yield os.path.normpath(f"{path}/{relative}/{name}")


def _cwd(pid: int, proc: Path) -> Path:
    try:
        return (proc / str(pid) / "cwd").readlink()
    except OSError:
        return Path("/")
