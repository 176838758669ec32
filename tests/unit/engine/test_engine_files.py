"""What belongs to an engine though nothing points to it: looked for in this very process."""

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
    held = descriptors(os.getpid())
    return Inventory(taken=0.0, is_engine=True, processes=(process,), descriptors=held)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A file whose url stands in the heap of this process, as in that of an EngineCore."""
    path = tmp_path / f"vllm_dist_{secrets.token_hex(16)}"
    path.write_bytes(b"store")
    kept = libc.strdup(b"file://" + os.fsencode(path))
    yield path
    libc.free(kept)


def test_the_file_store_is_found_by_the_url_in_the_heap(store: Path) -> None:
    assert str(store) in files.file_stores(this_process())


def test_a_store_of_another_engine_is_not_taken(store: Path, tmp_path: Path) -> None:
    strange = tmp_path / ("vllm_dist_" + "0" * 32)
    strange.write_bytes(b"another engine's")

    assert str(strange) not in files.file_stores(this_process())


def test_a_store_that_is_gone_is_not_carried(store: Path) -> None:
    store.unlink()

    assert str(store) not in files.file_stores(this_process())


def test_open_temporary_files_are_the_engines_own(tmp_path: Path) -> None:
    (tmp_path / "read").write_text("x")
    with (
        (tmp_path / "written").open("w"),
        (tmp_path / "log").open("a"),
        (tmp_path / "mapped").open("a+"),
        (tmp_path / "read").open(),
        (tmp_path / "deleted").open("w"),
    ):
        (tmp_path / "deleted").unlink()
        found = files.temporary_files(this_process())

    ours = [Path(path).name for path in found if path.startswith(str(tmp_path))]
    assert ours == ["mapped", "written"]


def test_a_file_that_somebody_else_has_open_too_is_not_taken(tmp_path: Path) -> None:
    with (tmp_path / "shared").open("w") as shared:
        other = subprocess.Popen(
            [sys.executable, "-c", "print('ready', flush=True); input()"],
            pass_fds=[shared.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with other:
            assert other.stdout is not None and other.stdout.readline() == b"ready\n"
            found = files.temporary_files(this_process())
            other.communicate(b"\n")
        alone = files.temporary_files(this_process())

    assert str(tmp_path / "shared") not in found
    assert str(tmp_path / "shared") in alone


@pytest.fixture
def model(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    (place / "sub").mkdir(parents=True)
    (place / ".git").mkdir()
    for name in ("config.json", "model.safetensors", "sub/more", ".git/index"):
        (place / name).write_text(name)
    return place


@pytest.mark.parametrize("words", ["--model {}", "--model={}", "-m vllm serve {} --port 1"])
def test_the_files_of_the_model_are_those_below_its_path(words: str, model: Path) -> None:
    found = files.model_files(this_process(*words.format(model).split()))

    assert [str(Path(p).relative_to(model)) for p in found] == [
        "config.json",
        "model.safetensors",
        "sub/more",
    ]


def test_drafters_adapters_templates_and_tokenizers_count_too(model: Path, tmp_path: Path) -> None:
    drafter, template = tmp_path / "drafter.gguf", tmp_path / "template.jinja"
    drafter.touch()
    template.touch()

    found = files.model_files(
        this_process(
            *("--speculative-config", json.dumps({"model": str(drafter)})),
            *("--chat-template", str(template)),
            *("--lora-modules", f"one={model / 'sub'}"),
        )
    )

    assert found == (str(drafter), str(model / "sub" / "more"), str(template))


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

    found = files.model_files(this_process("--model", "org/name"))

    assert found == (f"{repository}/snapshots/abc/model.safetensors",)


def test_a_command_without_a_model_needs_no_file() -> None:
    assert files.model_files(this_process("--model", "/nowhere/at/all")) == ()
    assert files.model_files(this_process()) == ()
