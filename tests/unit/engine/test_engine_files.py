"""Stores, temporary files and models of an engine are found, with this very process in its place."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cria.engine import files
from cria.model.inventory import Inventory, Process, Role
from cria.system.descriptors import descriptors

libc = ctypes.CDLL(None)
libc.strdup.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]


def this_process(*command: str, role: str = "EngineCore") -> Inventory:
    process = Process(
        pid=os.getpid(),
        parent=os.getppid(),
        session=0,
        uid=0,
        started=0.0,
        command=("python", *command),
        name="python",
        threads=1,
        namespaces={},
        role=Role(name=role, confidence="certain"),
    )
    return Inventory(
        taken=0.0,
        is_engine=True,
        processes=(process,),
        descriptors=descriptors(os.getpid()),
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A file whose url stands in the heap of this process, as in that of an EngineCore."""
    path = tmp_path / f"vllm_dist_{secrets.token_hex(16)}"
    path.write_bytes(b"store")
    url = libc.strdup(b"file://" + os.fsencode(path))
    yield path
    libc.free(url)


def test_the_file_store_is_found_by_the_url_in_the_heap(store: Path) -> None:
    assert str(store) in files.file_stores(this_process())


def test_a_store_of_another_engine_is_not_found(store: Path, tmp_path: Path) -> None:
    other = tmp_path / ("vllm_dist_" + "0" * 32)
    other.write_bytes(b"another engine's")

    assert str(other) not in files.file_stores(this_process())


def test_a_store_that_was_removed_is_not_found(store: Path) -> None:
    store.unlink()

    assert str(store) not in files.file_stores(this_process())


def test_temporary_files_that_are_open_to_write_are_found(tmp_path: Path) -> None:
    (tmp_path / "read").write_text("x")
    with (
        (tmp_path / "written").open("w"),
        (tmp_path / "log").open("a"),
        (tmp_path / "mapped").open("a+"),
        (tmp_path / "read").open(),
        (tmp_path / "deleted").open("w"),
    ):
        (tmp_path / "deleted").unlink()
        paths = files.temporary_files(this_process())

    names = [Path(path).name for path in paths if path.startswith(str(tmp_path))]
    assert names == ["mapped", "written"]


def test_a_temporary_file_that_another_process_has_open_is_not_found(tmp_path: Path) -> None:
    with (tmp_path / "shared").open("w") as shared:
        other = subprocess.Popen(
            [sys.executable, "-c", "print('ready', flush=True); input()"],
            pass_fds=[shared.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with other:
            assert other.stdout is not None and other.stdout.readline() == b"ready\n"
            with_other = files.temporary_files(this_process())
            other.communicate(b"\n")
        alone = files.temporary_files(this_process())

    assert str(tmp_path / "shared") not in with_other
    assert str(tmp_path / "shared") in alone


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "sub").mkdir(parents=True)
    (directory / ".git").mkdir()
    for name in ("config.json", "model.safetensors", "sub/more", ".git/index"):
        (directory / name).write_text(name)
    return directory


@pytest.mark.parametrize("arguments", ["--model {}", "--model={}", "-m vllm serve {} --port 1"])
def test_the_files_of_the_model_are_those_below_its_path(arguments: str, model: Path) -> None:
    paths = files.model_files(this_process(*arguments.format(model).split()))

    assert [str(Path(p).relative_to(model)) for p in paths] == [
        "config.json",
        "model.safetensors",
        "sub/more",
    ]


def test_drafters_adapters_and_templates_are_model_files_too(model: Path, tmp_path: Path) -> None:
    drafter, template = tmp_path / "drafter.gguf", tmp_path / "template.jinja"
    drafter.touch()
    template.touch()

    paths = files.model_files(
        this_process(
            *("--speculative-config", json.dumps({"model": str(drafter)})),
            *("--chat-template", str(template)),
            *("--lora-modules", f"one={model / 'sub'}"),
        )
    )

    assert paths == (str(drafter), str(model / "sub" / "more"), str(template))


def test_a_model_of_the_hub_is_found_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc\n")
    (repository / "blobs" / "1").write_text("weights")
    (repository / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/1")
    monkeypatch.setattr(files, "environment", lambda *_: {"HF_HUB_CACHE": str(tmp_path / "hub")})

    paths = files.model_files(this_process("--model", "org/name"))

    assert paths == (f"{repository}/snapshots/abc/model.safetensors",)


def test_a_command_without_a_model_has_no_model_files() -> None:
    assert files.model_files(this_process("--model", "/nowhere/at/all")) == ()
    assert files.model_files(this_process()) == ()
